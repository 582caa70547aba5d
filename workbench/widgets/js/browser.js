// The preference browser: one drawing routine for JupyterLab and for a rendered page. Rows come from a source that answers
// messages (`browser__rows.js`). All text goes in as text, never as markup.
const SORTS = { order: "order given", margin: "margin", length: "length difference", iteration: "iteration", score: "score" };
const SHOWN = ["prompt", "chosen", "rejected", "completion", "responses", "scores", "ranks", "names", "margin", "score", "p_chosen", "chosen_rewards",
  "rejected_rewards", "source", "source_chosen", "source_rejected", "iteration", "arm", "seed", "task_id"];
const KEYS = [["↑ ↓ PageUp PageDown Home End", "move in the list"], ["j k", "next, previous row"], ["/", "search"], ["1 2 …", "this response is better (1: left, 2: right)"],
  ["0", "tie"], ["x", "leave the row out"], ["u", "undo"], ["← →", "read token by token (in a heat map)"], ["?", "these keys"]];

// ---- the view
function render({ model, el }) {
  const data = model.get("data"), facets = data.facets, remote = Boolean(data.remote);
  const PLAIN = { text: "", low: null, high: null, source: "", iteration: "", arm: "", seed: "", state: "all", sort: "order", down: false };
  let view = { ...PLAIN, ...JSON.parse(model.get("state") || "{}") };
  let queries = 0, count = 0, place = -1, chosen = model.get("chosen") ?? -1, row = null, label = "", prefer = [], nLabels = data.n_labels, past = remote ? data.undo : 0, jump = false, begun = false;

  frame(el, "wb-browser", `preferences: ${data.name}`);
  const pick = (name, values, text = (x) => x) => make("select", { "aria-label": name, onchange: (event) => change({ [name]: event.target.value }) },
    ...values.map((value) => make("option", { value, text: text(value) })));
  const search = make("input", { type: "search", placeholder: "search prompts and responses", "aria-label": "search prompts and responses", oninput: () => change({ text: search.value }) });
  const bound = (name, words, hint) => make("input", { type: "number", step: "any", "aria-label": words, placeholder: hint === null ? "" : number(hint),
    oninput: (event) => change({ [name]: event.target.value === "" ? null : Number(event.target.value) }) });
  const low = bound("low", "smallest margin", data.range[0]), high = bound("high", "largest margin", data.range[1]);
  const picks = Object.fromEntries(["source", "iteration", "arm", "seed"].filter((name) => facets[name].length).map((name) => [name,
    pick(name, ["", ...facets[name]], (x) => (x === "" ? "any" : oneLine(x).slice(0, 60)))]));
  const state = pick("state", ["all", "relabelled", "not relabelled", "left out", ...data.marked], (x) => (x === "all" ? "all rows" : x));
  const has = { order: true, margin: data.range[0] !== null, length: data.kinds.some((kind) => kind !== "rated"), iteration: facets.iteration.length > 0, score: data.kinds.includes("rated") };
  const sort = pick("sort", Object.keys(SORTS).filter((name) => has[name]), (x) => SORTS[x]);
  sort.setAttribute("aria-label", "order by");
  const down = make("button", { type: "button", onclick: () => change({ down: !view.down }) });
  const clear = make("button", { type: "button", text: "clear filters", onclick: () => change({ ...PLAIN, sort: view.sort, down: view.down }) });
  const total = make("p", { class: "soft total", role: "status", "aria-live": "polite" });
  const say = make("p", { class: "soft say", role: "status", "aria-live": "polite" });
  const list = rowList({ label: `rows of ${data.name}`, height: 30, draw: drawRow, choose: open });
  const only = make("input", { type: "checkbox", "aria-label": "only labelled rows" });
  const save = make("button", { type: "button", text: "Export JSONL", onclick: () => source.save(only.checked) });
  const keys = make("div", { class: "keys", hidden: "" }, make("b", { text: "Keys" }), make("dl", {}, ...KEYS.flatMap(([key, what]) => [make("dt", {}, make("kbd", { text: key })), make("dd", { text: what })])));
  const button = (text, key, act) => make("button", { type: "button", title: `key ${key}`, onclick: act }, text, " ", make("kbd", { text: key, "aria-hidden": "true" }));
  const tie = button("tie", "0", () => give("0")), out = button("leave out", "x", () => give("x")), undo = button("undo", "u", () => source.undo());
  const help = button("keys", "?", () => { keys.hidden = !keys.hidden; help.setAttribute("aria-expanded", String(!keys.hidden)); });
  help.setAttribute("aria-expanded", "false");
  const mode = make("select", { "aria-label": "what is marked in the responses", onchange: drawTexts },
    ...[["diff", "words that differ"], ["ratio", "token log-ratios"], ["plain", "nothing"]].map(([value, text]) => make("option", { value, text })));
  const legend = make("div", { class: "legend" }), heading = make("h4"), facts = make("p", { class: "soft facts" }), badges = make("span", { class: "badges" });
  const prompt = make("div", { class: "prompt" }), sides = make("div", { class: "sides" }), more = make("div", { class: "more" });
  const bar = make("div", { class: "controls bar" }, tie, out, undo, help, make("label", { class: "mark" }, "mark ", mode));
  const detail = make("div", { class: "opened", tabindex: 0, role: "group", "aria-label": "the opened row" }, heading, facts, bar, keys, say, prompt, legend, sides, more);
  const amount = has.margin ? "margin" : has.score ? "score" : "";
  const titles = make("div", { class: "titles soft", "aria-hidden": "true" }, make("span", { class: "place", text: "row" }), ...(amount ? [make("span", { class: "amount", text: amount })] : []), make("span", { class: "words", text: "prompt and first response" }));
  const named = Object.entries(picks).map(([name, node]) => make("label", {}, `${name} `, node));
  el.append(
    make("div", { class: "controls" }, search, make("label", {}, "order by ", sort), down, ...named, make("label", {}, "show ", state),
      ...(has.margin ? [make("span", { class: "range" }, "margin ", low, " to ", high)] : []), clear,
      make("span", { class: "exports" }, save, make("label", {}, only, " only labelled"))),
    make("div", { class: "grid" }, make("div", {}, titles, list.el, total), detail));

  // ---- the list
  const widest = Math.max(Math.abs(data.range[0] ?? 0), Math.abs(data.range[1] ?? 0), 1e-9);
  function drawRow(k) {
    const light = source.at(k);
    if (!light) return [[make("span", { class: "place", text: "…" }), make("span", { class: "waiting" })], ""];
    const [i, kind, margin, words, marks, copies, given, answer] = light;
    const chips = [...marks, ...(copies > 1 ? [`×${copies}`] : [])].map((text) => make("span", { class: "badge", text, title: text.startsWith("×") ? `stands here ${copies} times` : text }));
    if (given) chips.unshift(make("span", { class: "badge yours", text: `✎ ${given}`, title: "your label" }));
    const cell = make("span", { class: `amount ${margin === null ? "" : margin < 0 ? "minus" : "plus"}`, text: margin === null ? "?" : signed(margin, Math.abs(margin) >= 100 ? 0 : 2), title: margin === null ? "margin unknown" : kind === "rated" ? "score" : "margin" });
    if (margin !== null && kind !== "rated") cell.append(make("i", { style: `width:${(100 * Math.min(1, Math.abs(margin) / widest)).toFixed(1)}%` }));
    const line = make("span", { class: "words" }, make("bdi", { text: oneLine(words) || "(empty)" }), make("bdi", { class: "soft answer", text: oneLine(answer) }));
    return [[make("span", { class: "place", text: i }), ...(has.margin || has.score ? [cell] : []), line, ...chips], given === "x" ? "left-out" : ""];
  }
  function change(part) {
    view = { ...view, ...part };
    model.set("state", JSON.stringify(view));
    model.save_changes();
    ask();
  }
  function ask() {
    for (const [node, value] of [[search, view.text], [state, view.state], [sort, view.sort], ...Object.entries(picks).map(([name, node]) => [node, view[name]])]) if (node.value !== value) node.value = value;
    for (const [node, value] of [[low, view.low], [high, view.high]]) if ((node.value === "" ? null : Number(node.value)) !== value) node.value = value ?? "";
    down.textContent = view.sort === "order" ? (view.down ? "↑ last to first" : "↓ first to last") : view.down ? "↓ largest first" : "↑ smallest first";
    source.ask(view, chosen, queries += 1);
  }
  function tally(unknown) {
    const carried = remote ? data.total : data.rows.length;
    total.textContent = `${counted(count)} of ${counted(carried)} rows${unknown && has.margin ? `, ${counted(unknown)} without a margin (last)` : ""}; ${counted(nLabels)} labelled.`
      + (carried < data.total ? ` This page carries ${counted(carried)} of ${counted(data.total)} rows: JupyterLab or a script shows all.` : "");
    total.dataset.unknown = unknown;
  }
  function open(k) {
    if (k < 0 || k >= count) return;
    place = k;
    list.mark(k);
    source.open(k);
  }
  const step = (by) => open(Math.max(0, Math.min(count - 1, (place < 0 ? (by > 0 ? -1 : count) : place) + by)));

  // ---- one row
  function give(value) {
    if (!row) return;
    const known = { pair: 2, ranking: row.order?.length, rated: -1 }[kindOf(row.raw)];
    if (value !== "x" && !(Number(value) <= known)) { say.textContent = known < 0 ? "A rated row can be left out (x); it has nothing to prefer." : `This row has ${known} responses.`; return; }
    source.label(row.i, value);
  }
  function drawLabel() {
    badges.replaceChildren(...(label ? [make("span", { class: "badge yours", text: label === "x" ? "✎ left out" : `✎ ${preferred(row, label) === preferred(row) ? "confirmed" : "relabelled"}: ${preferred(row, label)}` })] : []));
    prefer.forEach((node, k) => { node.setAttribute("aria-pressed", String(label === String(k + 1))); node.closest(".side").classList.toggle("best", label === String(k + 1)); });
    const nothing = !row || kindOf(row.raw) === "rated";
    for (const [node, value] of [[tie, "0"], [out, "x"]]) node.setAttribute("aria-pressed", String(label === value));
    tie.disabled = nothing;
    undo.disabled = !past;
  }
  function drawPrompt() {
    const turns = typeof row.raw.prompt === "string" ? [{ role: "prompt", content: row.raw.prompt }] : row.raw.prompt;
    prompt.replaceChildren(...turns.map((turn) => make("div", { class: "turn" }, make("span", { class: "role", text: oneLine(turn.role) }),
      put(make("p", { class: "words", dir: "auto" }), turn.content || "(empty)"))));
  }
  function titleOf(k) {
    const { raw, order } = row;
    if (kindOf(raw) === "pair") return k ? ["rejected", raw.source_rejected, raw.rejected_rewards, "reward"] : ["chosen", raw.source_chosen, raw.chosen_rewards, "reward"];
    if (kindOf(raw) === "rated") return ["rated", null, raw.score, "score"];
    const value = (raw.scores ?? raw.ranks)[order[k]];
    return [`response ${order[k] + 1}`, raw.names?.[order[k]], value, raw.scores ? "score" : "rank"];
  }
  // columns with one number a response, as `before` and `after` of held-out lists
  const isPer = (name, value) => Boolean(row.order) && !SHOWN.includes(name) && Array.isArray(value) && value.length === row.order.length && value.every((x) => x === null || typeof x === "number");
  const perResponse = (k) => (row.order ? Object.entries(row.raw).filter(([name, value]) => isPer(name, value)).map(([name, value]) => `${oneLine(name)} ${signed(value[row.order[k]])}`) : []);
  function drawTexts() {
    const texts = textsOf(row), diffs = [], pieces = row.tokens;
    prefer = [];
    const how = mode.value === "ratio" && !pieces ? "waiting" : mode.value;
    if (how === "diff" && texts.length > 1) texts.forEach((text, k) => { diffs[k] = k ? wordDiff(texts[0], text) : null; });
    if (how === "diff" && texts.length === 2) diffs[0] = { sides: [null, diffs[1].sides[0]], rough: diffs[1].rough };
    const scale = pieces ? Math.max(0.05, ...pieces.flat().map(([, value]) => Math.abs(value ?? 0))) : 1;
    drawLegend(how, texts, scale, diffs.some((one) => one?.rough));
    sides.className = `sides of-${kindOf(row.raw)}`;
    sides.replaceChildren(...texts.map((text, k) => {
      const [title, from, value, what] = titleOf(k), sum = pieces?.[k]?.reduce((all, [, x]) => all + (x ?? 0), 0);
      const about = [from ? oneLine(String(from)) : "", typeof value === "number" ? `${what} ${what === "rank" ? value : signed(value)}` : "", words(text.length),
        how === "ratio" && pieces[k] ? `sum ${signed(sum)} nats` : "", ...perResponse(k)];
      const head = make("div", { class: "head" }, make("b", { text: title }));
      if (kindOf(row.raw) !== "rated" && k < 9) {
        prefer.push(make("button", { type: "button", "aria-label": `prefer ${title}`, onclick: () => give(String(k + 1)) }, "better ", make("kbd", { text: k + 1, "aria-hidden": "true" })));
        head.append(prefer[prefer.length - 1]);
      }
      let body = make("p", { class: "words", dir: "auto" });
      if (!text.trim()) body.append(make("em", { class: "soft", text: text ? `(only white space, ${words(text.length)})` : "(empty)" }));
      else if (how === "ratio" && pieces[k]) body = heat(pieces[k], scale, title);
      else if (how === "diff" && diffs[k]) for (const [part, mine] of diffs[k].sides[1]) body.append(mine ? put(make(k ? "del" : "ins", {}), part) : put(make("span"), part));
      else put(body, text);
      return make("div", { class: "side" }, head, make("p", { class: "soft about", text: about.filter(Boolean).join(" · ") }), body);
    }));
    drawLabel();
  }
  function drawLegend(how, texts, scale, rough) {
    legend.replaceChildren();
    if (how === "waiting") {
      legend.append(data.policy ? "computing the log-ratios of this row …" : "No log-ratios were computed for this row: with_log_ratios(policy, reference) in Python computes them.");
      if (data.policy) { const i = row.i; setTimeout(() => { if (row.i === i && !row.tokens) source.tokens(i); }, 150); } // only where the reader stays
    } else if (how === "ratio") {
      legend.append(make("span", {}, `−${number(scale)} `, make("span", { class: "ramp", "aria-hidden": "true" }), ` +${number(scale)} nats`),
        "Blue and solid: the policy finds the token likelier than the reference does; orange and dashed: less likely. Point at a token, or use ← → in a text.");
    } else if (how === "diff" && texts.length > 1) {
      if (new Set(texts).size === 1) legend.append("The responses are the same text: this row carries no signal.");
      else if (texts.length === 2) legend.append(make("ins", { text: "only chosen" }), make("del", { text: "only rejected" }), rough ? "very long texts: words are compared without their order" : "");
      else legend.append(make("del", { text: "not in the best response" }), rough ? "very long texts: words are compared without their order" : "");
    }
  }
  function heat(parts, scale, title) {
    const read = make("span", { class: "soft read", role: "status", "aria-live": "polite" }), n = parts.length;
    const shown = (text, kind) => (kind === "end" ? "⟨end⟩" : text === "" ? "\u00a0" : text.replace(/^ +/, (x) => "·".repeat(x.length)).replace(/\n/g, "⏎\n").replace(/\t/g, "⇥"));
    const nodes = parts.map(([text, value, kind]) => {
      const node = make("span", { class: `token ${text || kind ? "" : "part "}${value === null ? "cut" : value < 0 ? "minus" : "plus"}`, ...(value === null ? {} : { style: `background:rgba(var(--wb-${value < 0 ? "minus" : "plus"}),${(0.5 * Math.min(1, Math.abs(value) / scale)).toFixed(3)})` }) });
      if (/^\s/.test(text)) node.append(make("wbr"));
      return put(node, shown(text, kind));
    });
    let at = -1;
    function tell(k) {
      nodes[at]?.classList.remove("current");
      at = k;
      const [text, value, kind] = parts[k];
      nodes[k].classList.add("current");
      read.textContent = `token ${k + 1} of ${n}: ${kind === "end" ? "end of the response" : text ? JSON.stringify(text) : "a further part of the character before it"}, ${value === null ? "cut off, not scored" : `${signed(value, 4)} nats`}`;
    }
    const text = make("p", { class: "words tokens", dir: "auto", tabindex: 0, role: "group", "aria-label": `tokens of ${title}; left and right arrow read their log-ratios`,
      onkeydown: (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1, Home: -n, End: n }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        tell(Math.max(0, Math.min(n - 1, at + by)));
      },
      onmouseover: (event) => { const k = nodes.indexOf(event.target.closest(".token")); if (k >= 0) tell(k); } }, ...nodes);
    return make("div", {}, text, read);
  }
  function drawMore() {
    const { raw, at } = row, [from, table] = data.origins[at[0]], others = Object.entries(raw).filter(([name, value]) => !SHOWN.includes(name) && !isPer(name, value));
    others.push(["read from", `${from}${table ? `, table ${table}` : ""}, row ${counted(at[1])}`]);
    const cell = (value) => { const text = typeof value === "string" ? value : JSON.stringify(value); return text.length > 2000 ? `${text.slice(0, 2000)} … ${words(text.length - 2000)} more` : text; };
    const open = more.firstElementChild?.open ?? false; // it stays open from row to row
    const text = others.length === 1 ? "where it was read" : `${others.length - 1} more ${others.length === 2 ? "column" : "columns"}, and where it was read`;
    more.replaceChildren(make("details", open ? { open: "" } : {}, make("summary", { text }), make("table", {}, make("tbody", {}, ...others.map(([name, value]) => make("tr", {}, make("th", { scope: "row", text: oneLine(name) }), put(make("td", { dir: "auto" }), cell(value))))))));
  }
  function drawFacts() {
    const { raw } = row, light = source.at(place);
    heading.replaceChildren(`Row ${counted(row.i)} · ${kindOf(raw)} `, badges);
    const marks = light ? [...light[4], ...(light[5] > 1 ? [`stands here ${light[5]} times`] : [])] : [];
    const said = [kindOf(raw) !== "rated" && has.margin && light ? `margin ${signed(light[2])}` : "", "p_chosen" in raw ? `p_chosen ${raw.p_chosen ?? "unknown"}` : "",
      ...["seed", "arm", "iteration", "task_id", "source"].filter((name) => raw[name] !== undefined && raw[name] !== null).map((name) => `${name} ${oneLine(String(raw[name]))}`), ...marks];
    facts.textContent = said.filter(Boolean).join(" · ");
  }

  // ---- what the source says
  function hear(message) {
    if (message.kind === "answer") {
      if (message.query < queries && remote) return;
      count = message.count;
      place = message.at;
      list.show(count, place);
      if (place >= 0) list.mark(place); else if (!jump) list.el.scrollTop = 0;
      tally(message.unknown);
      if (jump && place < 0) say.textContent = `Row ${chosen} is not among those shown.`;
      if (place >= 0 && (jump || !row)) open(place);
      else if (!begun && count) open(0);
      begun = true;
      jump = false;
      if (!count) list.el.firstElementChild.append(make("p", { class: "soft none", text: data.total ? "No row passes these filters." : "There are no rows." }));
      detail.classList.toggle("unopened", !row);
    } else if (message.kind === "window") list.refresh();
    else if (message.kind === "row" && message.place === place) {
      const first = !row;
      row = message.row;
      chosen = row.i;
      label = (source.at(place) ?? [])[6] ?? "";
      if (first && row.tokens) mode.value = "ratio";
      say.textContent = "";
      drawFacts(); drawPrompt(); drawTexts(); drawMore();
      detail.scrollTop = 0;
      detail.classList.remove("unopened");
      model.set("chosen", chosen);
      model.save_changes();
    } else if (message.kind === "tokens") { if (row?.i === message.row) { row.tokens = message.tokens; drawTexts(); } }
    else if (message.kind === "labels") {
      nLabels = message.n;
      past = message.undo;
      if (row && row.i in message.changes) {
        label = message.changes[row.i];
        const now = preferred(row, label);
        say.textContent = label === "" ? "" : `Row ${row.i}: ${now === "tie" ? "a tie" : now === "left out" ? "left out of exports" : `${now} is better`}; u takes it back.${remote ? "" : " Labels last until this page is closed: export them."}`;
        drawLabel();
      }
      tally(Number(total.dataset.unknown) || 0);
      list.refresh();
    } else if (message.kind === "undone") say.textContent = message.row < 0 ? "There is nothing to undo." : `The last label of row ${message.row} is taken back.`;
    else if (message.kind === "said" || message.kind === "problem") { say.textContent = message.text; if (message.kind === "problem" && mode.value === "ratio" && !row?.tokens) legend.textContent = message.text; }
  }
  const source = remote ? remoteRows(model, hear) : localRows(data, hear);

  el.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) { list.el.focus(); return; }
    if (event.target.closest("select") || (event.target.tagName === "INPUT" && event.target !== only)) return;
    const acts = { "/": () => { search.focus(); search.select(); }, j: () => step(1), k: () => step(-1), x: () => give("x"), u: () => source.undo(), "?": () => help.click() };
    const act = acts[event.key] ?? (/^\d$/.test(event.key) ? () => give(event.key) : null);
    if (!act) return;
    event.preventDefault();
    act();
  });
  model.on("change:state", () => { const next = { ...PLAIN, ...JSON.parse(model.get("state")) }; if (JSON.stringify(next) !== JSON.stringify({ ...PLAIN, ...view })) { view = next; ask(); } });
  model.on("change:chosen", () => { const next = model.get("chosen"); if (next >= 0 && next !== chosen) { chosen = next; jump = true; ask(); } });
  if (data.policy) mode.value = "ratio";
  drawLabel();
  ask();
  requestAnimationFrame(() => list.refresh());
}
