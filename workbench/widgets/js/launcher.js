// All systems: pick one, read its question, method and last verdicts, run it. One drawing routine for JupyterLab (through
// anywidget), where the buttons work, and for a rendered page, where the command stands in their place. Every word goes in as
// text; a formula comes as lists and becomes nodes of the kinds named here, never markup.
function render({ model, el, live = false }) {
  let data = model.get("data"), told = JSON.parse(model.get("status")), heard = Date.now();
  let chosen = "", shown = [];
  const asked = {}; // systems whose button was pressed and not answered yet
  const choices = {}; // scale, seeds and source of verdicts that the reader set, a system
  const by = (name) => data.systems.find((one) => one.name === name);
  const stateOf = (name) => told.states[name] ?? { status: "none" };
  const goesOn = (state) => ["starting", "running", "stopping"].includes(state.status);
  const MARK = { yes: "✓", no: "✗", open: "?" };
  const KIND = { "shown in small": "yes", reproduced: "yes", "follows from the published data": "yes", "not shown": "no", "not reproduced": "no", "does not follow": "no" };
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const words = (counts) => Object.entries(counts).map(([verdict, n]) => (verdict.startsWith("smoke") ? `${n} measured, no verdict at smoke` : `${n} ${verdict}`)).join(", ");

  // ---- skeleton
  frame(el, "wb-launcher", "systems and studies");
  const id = `wbl${Math.random().toString(36).slice(2, 9)}`;
  const search = make("input", { type: "search", placeholder: "search  ( / )", "aria-label": "search systems by name, title, paper or question" });
  const total = make("p", { class: "soft total", role: "status", "aria-live": "polite" });
  const list = make("div", { class: "list systems", role: "listbox", tabindex: 0, "aria-label": "systems; Enter goes to the run button" });
  const detail = make("div", { class: "opened", role: "group" });
  el.append(make("div", { class: "sides" }, make("div", { class: "picker" }, search, list, total), detail));

  // ---- what is known of the chosen system
  const title = make("h4", { id: `${id}-title` }), meta = make("p", { class: "soft meta" });
  const question = make("p", { class: "question" }), about = make("p", { class: "about" });
  const method = make("details", { class: "method", open: "" });
  detail.setAttribute("aria-labelledby", `${id}-title`);

  // ---- run it
  const scale = make("select", { "aria-label": "scale" });
  const seeds = make("input", { type: "number", min: 1, max: data.most_seeds, step: 1, "aria-label": "seeds" });
  const runButton = make("button", { type: "button", class: "go", onclick: press });
  const stopButton = make("button", { type: "button", class: "halt", text: "Stop", onclick: halt });
  const hint = make("span", { class: "soft hint" });
  const command = make("code", { class: "command" });
  const bar = make("progress", { max: 1, "aria-label": "progress of the run" });
  const state = make("span", { class: "state", role: "status", "aria-live": "polite" }), facts = make("span", { class: "soft facts" });
  const outcome = make("p", { class: "outcome" });
  const progress = make("div", { class: "going" }, bar, make("p", {}, state, facts), outcome);
  const card = make("div", { class: "card", role: "group", "aria-label": "run this system" },
    make("div", { class: "controls" }, make("label", {}, "scale ", scale), make("label", {}, "seeds ", seeds), ...(live ? [runButton, stopButton] : []), hint),
    make("p", { class: "soft typed" }, live ? "The same in a terminal: " : "Run it from a terminal: ", command), progress);

  // ---- verdicts
  const source = make("select", { "aria-label": "verdicts of" }), from = make("div", { class: "controls" }), verdicts = make("div", { class: "verdicts", tabindex: 0, role: "region", "aria-label": "claims and verdicts" });
  detail.append(title, meta, question, about, card, method, make("h5", { text: "Last verdicts" }), from, verdicts);

  // ---- pieces of text and formulas
  const MATHS = new Set(["math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mfrac", "msqrt", "mroot",
    "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "mfenced", "menclose"]);
  const FITTING = new Set(["display", "displaystyle", "scriptlevel", "stretchy", "fence", "separator", "form", "mathvariant", "linethickness", "columnalign",
    "columnspacing", "rowspacing", "minsize", "maxsize", "lspace", "rspace", "accent", "accentunder", "movablelimits", "largeop", "symmetric", "width", "height", "depth"]);
  function formula([tag, attributes, text, children]) {
    const node = document.createElementNS("http://www.w3.org/1998/Math/MathML", MATHS.has(tag) ? tag : "mrow");
    for (const [name, value] of Object.entries(attributes)) if (FITTING.has(name)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    node.append(...children.map(formula));
    return node;
  }
  function piece([kind, content]) {
    if (kind === "display") return make("span", { class: "display" }, formula(content));
    if (kind === "math") return formula(content);
    return ["strong", "em", "code"].includes(kind) ? make(kind, { text: content }) : document.createTextNode(content);
  }
  // a formula that is wider than its place can be scrolled, by key too
  const wide = new ResizeObserver((seen) => {
    for (const { target } of seen) {
      const over = target.scrollWidth > target.clientWidth + 1;
      if (over) { target.tabIndex = 0; target.setAttribute("role", "region"); target.setAttribute("aria-label", "formula, scrolls sideways"); }
      else for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name);
    }
  });

  // ---- the list
  function sums(counts) {
    const found = { yes: 0, no: 0, open: 0 };
    for (const [verdict, n] of Object.entries(counts)) found[KIND[verdict] ?? "open"] += n;
    return make("span", { class: "sums" }, make("span", { class: "unseen", text: words(counts) || "no verdicts yet" }),
      ...Object.entries(found).filter(([, n]) => n).map(([kind, n]) => make("span", { class: kind, "aria-hidden": "true", text: `${MARK[kind]} ${n}` })));
  }
  function drawList() {
    const asks = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const text = (one) => [one.name, one.title, one.group, one.paper, one.question, ...one.tags].join(" ").toLowerCase();
    const found = data.systems.filter((one) => asks.every((word) => text(one).includes(word)));
    const groups = [...new Set(found.map((one) => one.group))];
    shown = groups.flatMap((group) => found.filter((one) => one.group === group)).map((one) => one.name);
    list.replaceChildren(...groups.map((group, g) => make("div", { role: "group", "aria-labelledby": `${id}-g${g}` },
      make("div", { class: "group soft", id: `${id}-g${g}`, role: "presentation", text: group }),
      ...found.filter((one) => one.group === group).map((one) => {
        const now = stateOf(one.name);
        return make("div", { class: "system", role: "option", id: `${id}-${shown.indexOf(one.name)}`, "aria-selected": String(one.name === chosen), onclick: () => choose(one.name) },
          make("span", { class: "head" }, make("b", { text: one.title })),
          make("span", { class: "soft below" }, make("span", { class: "what", text: [one.name, one.paper, one.cost].filter(Boolean).join(" · ") }),
            goesOn(now) ? make("span", { class: "running", text: `● ${Math.round(100 * now.share)} %` }) : sums(one.counts)));
      }))));
    if (!shown.length) list.append(make("div", { role: "option", "aria-disabled": "true", "aria-selected": "false", class: "none soft", text: "Nothing fits. Escape clears the search." }));
    total.textContent = `${shown.length} of ${data.systems.length} systems and studies`;
    mark();
  }
  function mark() {
    const at = shown.indexOf(chosen);
    list.querySelectorAll("[role=option]").forEach((row, k) => row.setAttribute("aria-selected", String(k === at && at >= 0)));
    if (at < 0) { list.removeAttribute("aria-activedescendant"); return; }
    list.setAttribute("aria-activedescendant", `${id}-${at}`);
    const row = list.querySelector(`#${id}-${at}`), top = row.offsetTop, end = top + row.offsetHeight;
    if (top < list.scrollTop + 24) list.scrollTop = top - 24; else if (end > list.scrollTop + list.clientHeight) list.scrollTop = end - list.clientHeight;
  }
  function choose(name, tell = true) {
    if (!by(name)) return;
    chosen = name;
    mark();
    drawDetail();
    if (!tell) return;
    model.set("chosen", name);
    model.save_changes();
    if (live) model.send({ kind: "look", name });
  }

  // ---- the chosen system
  const link = (where, text) => make("a", { href: where, target: "_blank", rel: "noopener", text });
  const base = () => { try { return JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl || data.base; } catch { return data.base; } };
  const below = (route, folder, path) => base() + route + [folder, path].filter(Boolean).join("/").split("/").map(encodeURIComponent).join("/");
  function pageLink(path, text) { // how a browser gets at a page of the runs folder
    if (!path) return [];
    if (!live) return [make("span", { class: "soft", text: `${text}: ${path} in the runs folder` })];
    if (data.served.runs !== null) return [link(below("files/", data.served.runs, path), `${text} ↗`)];
    return [make("span", { class: "soft path" }, `${text}: `, make("code", { text: `${data.root}/${path}` }), "; a browser that cannot open files gets it from ", make("code", { text: "workbench serve-pages" }))];
  }
  function drawDetail() {
    const one = by(chosen);
    title.textContent = one.title;
    const place = live && data.served.checkout !== null && !one.trouble ? link(below("lab/tree/", data.served.checkout, one.notebook), `${one.notebook} ↗`) : one.notebook;
    meta.replaceChildren(`${one.name} · ${one.paper} · `, place);
    question.textContent = one.trouble || one.question;
    about.replaceChildren(...one.about.map(piece));
    method.hidden = !one.method.length;
    wide.disconnect();
    method.replaceChildren(make("summary", { text: "The method in one equation" }), ...one.method.map((block) => make("p", {}, ...block.map(piece))));
    for (const node of method.querySelectorAll(".display")) wide.observe(node);
    const set = choices[chosen] ?? {}, now = stateOf(chosen);
    scale.replaceChildren(...data.scales.map((name) => make("option", { value: name, text: name })));
    scale.value = set.scale ?? (goesOn(now) ? now.scale || "tiny" : "tiny");
    seeds.value = set.seeds ?? (goesOn(now) && now.seeds ? now.seeds : one.seeds[scale.value]);
    drawHint();
    drawRun();
    drawVerdicts();
  }
  function drawHint() {
    const one = by(chosen), many = wanted();
    const cost = { smoke: "about a minute, decides nothing", tiny: one.cost ? `about ${one.cost} on two cores` : "minutes on two cores", full: "the paper's own size: hours, and a GPU" };
    hint.textContent = cost[scale.value] ?? "";
    command.textContent = `workbench reproduce ${one.name} --scale ${scale.value}${many === one.seeds[scale.value] ? "" : ` --seeds ${many ?? "?"}`}`;
  }
  function wanted() { // whole seeds in range, or null
    const n = Number(seeds.value);
    return Number.isInteger(n) && n >= 1 && n <= data.most_seeds ? n : null;
  }

  // ---- where its run stands
  const SAY = { starting: "starting …", running: "running", stopping: "stopping …", done: "done", failed: "failed", stopped: "stopped" };
  function drawRun() {
    const now = stateOf(chosen), on = goesOn(now), said = told.said[chosen], waits = asked[chosen] && !on;
    runButton.textContent = on ? "Running" : now.status === "stopped" ? "Run, go on" : "Run";
    runButton.disabled = on || waits || wanted() === null;
    stopButton.hidden = !on;
    stopButton.disabled = now.status === "stopping" || !now.ours;
    stopButton.title = on && !now.ours ? "It was started elsewhere: stop it there." : "";
    progress.hidden = !live || (now.status === "none" && !waits && !said);
    progress.className = `going is-${waits ? "starting" : said ? "failed" : now.status}`;
    bar.hidden = !(on || waits || now.status === "done");
    if (waits || (now.status === "starting")) bar.removeAttribute("value"); else bar.value = now.share ?? 0;
    const words_ = said ? "not started" : waits ? "asked for; the kernel starts it when it has time" : now.reused ? "done: this run was there already" : SAY[now.status] ?? "";
    if (state.textContent !== words_) state.textContent = words_;
    drawFacts();
    if (said) outcome.replaceChildren(make("span", { class: "why", text: said }));
    else if (now.status === "done") outcome.replaceChildren(...pageLink(now.page, "open its page"));
    else if (now.status === "failed") outcome.replaceChildren(make("span", { class: "why", text: now.reason }), " ", ...pageLink(now.page, "the notebook with its error"));
    else if (now.status === "stopped") outcome.replaceChildren(make("span", { class: "soft", text: "What was computed is kept: the button goes on from there." }));
    else if (on && !now.ours) outcome.replaceChildren(make("span", { class: "soft", text: "It was started elsewhere, and is stopped there." }));
    else outcome.replaceChildren();
  }
  function drawFacts() {
    const now = stateOf(chosen), on = goesOn(now);
    if (now.status === "none" || told.said[chosen]) { facts.textContent = ""; return; }
    const parts = [`${now.scale}, ${now.seeds} ${now.seeds === 1 ? "seed" : "seeds"}`];
    if (on && now.cells) parts.push(`cell ${now.cell} of ${now.cells}`);
    if (now.total && now.status !== "done") parts.push(`${now.done} of ${now.total} parts${on && now.stage ? `, ${now.stage}` : ""}`);
    parts.push(clock(now.elapsed_s + (on ? (Date.now() - heard) / 1000 : 0)));
    if (Object.keys(now.verdicts).length) parts.push(words(now.verdicts));
    facts.textContent = ` · ${parts.join(" · ")}`;
  }
  function press() {
    if (runButton.disabled) return;
    asked[chosen] = true;
    delete told.said[chosen];
    model.send({ kind: "run", name: chosen, scale: scale.value, seeds: wanted() });
    drawRun();
    stopButton.focus();
  }
  function halt() {
    model.send({ kind: "stop", name: chosen });
    stopButton.disabled = true;
    runButton.focus();
  }

  // ---- what was found
  function drawVerdicts() {
    const one = by(chosen), set = choices[chosen]?.source, k = Math.max(0, set ? one.sources.findIndex((s) => s.label === set) : one.first), here = one.sources[k];
    if (!here) {
      from.replaceChildren();
      verdicts.replaceChildren(make("p", { class: "soft", text: "None yet: nothing was run here, and nothing is published." }));
      return;
    }
    source.replaceChildren(...one.sources.map((s) => make("option", { value: s.label, text: s.label })));
    source.value = here.label;
    const many = one.sources.length > 1;
    from.replaceChildren(many ? make("label", {}, "of ", source) : make("span", { class: "soft", text: here.label }), ...pageLink(here.page, "its page"));
    if (!here.rows.length) { verdicts.replaceChildren(make("p", { class: "soft", text: "It makes no claims: its page shows what it found." })); return; }
    const head = make("tr", {}, ...["claim", "paper's value", "measured, 95 % interval", "verdict"].map((text) => make("th", { scope: "col", text })));
    verdicts.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...here.rows.map((row) => make("tr", {},
      make("td", {}, make("b", { text: `${row.id} ` }), row.statement), make("td", { "data-name": "paper", text: row.paper }),
      make("td", { "data-name": "measured" }, row.here, row.control ? make("span", { class: "soft control", text: `control: ${row.control}` }) : ""),
      make("td", {}, make("span", { class: `says ${row.kind}` }, make("span", { "aria-hidden": "true", text: `${MARK[row.kind]}\u00a0` }), row.verdict)))))));
  }

  // ---- keys and news
  search.addEventListener("input", drawList);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; drawList(); }
    else if (event.key === "ArrowDown" || event.key === "Enter") { if (shown.length) { choose(shown.includes(chosen) && event.key === "ArrowDown" ? chosen : shown[0]); list.focus(); } }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  list.addEventListener("keydown", (event) => {
    const at = shown.indexOf(chosen), step = { ArrowDown: 1, ArrowUp: -1, PageDown: 6, PageUp: -6, Home: -shown.length, End: shown.length }[event.key];
    if (event.key === "/") search.focus();
    else if (event.key === "Enter") (live && !runButton.disabled ? runButton : scale).focus();
    else if (step !== undefined && shown.length) choose(shown[Math.max(0, Math.min(shown.length - 1, at < 0 ? 0 : at + step))]);
    else return;
    event.preventDefault();
  });
  function showRun(name) { // the verdicts of the run that has just ended, whatever was looked at before
    const ended = by(name)?.sources.find((one) => one.page && one.page === stateOf(name).page);
    if (ended) choices[name] = { ...choices[name], source: ended.label };
  }
  const keep = (values) => { choices[chosen] = { ...choices[chosen], ...values }; };
  scale.addEventListener("change", () => { seeds.value = by(chosen).seeds[scale.value]; keep({ scale: scale.value, seeds: seeds.value }); drawHint(); drawRun(); });
  seeds.addEventListener("input", () => { keep({ seeds: seeds.value }); drawHint(); drawRun(); });
  source.addEventListener("change", () => { keep({ source: source.value }); drawVerdicts(); });
  model.on("change:data", () => { data = model.get("data"); drawList(); drawRun(); drawVerdicts(); });
  model.on("change:chosen", () => { if (model.get("chosen") !== chosen) choose(model.get("chosen"), false); });
  model.on("change:status", () => {
    const before = told;
    told = JSON.parse(model.get("status"));
    heard = Date.now();
    for (const name of Object.keys(told.states)) {
      const was = before.states[name]?.status, is = told.states[name].status;
      if (goesOn(told.states[name]) || is !== was || told.states[name].elapsed_s !== before.states[name]?.elapsed_s) delete asked[name];
      if (is === "done" && was !== "done") showRun(name);
    }
    for (const name of Object.keys(told.said)) delete asked[name];
    drawList();
    drawRun();
    drawVerdicts();
  });
  for (const [name, one] of Object.entries(told.states)) if (one.status === "done") showRun(name);
  drawList();
  choose(by(model.get("chosen")) ? model.get("chosen") : data.systems[0]?.name, false);
  if (!live) return undefined;
  const ticking = setInterval(() => { if (goesOn(stateOf(chosen))) drawFacts(); }, 1000);
  return () => clearInterval(ticking);
}
