// What will be trained on, before it is: one drawing routine for JupyterLab (through anywidget) and for a rendered page
// (through the page's own script). It gets tokens and draws them. Text goes in as text, never as markup.
function render({ model, el, live = false }) {
  const data = model.get("data");
  const { listed, lengths, cuts, findings, labels } = data;
  const N = listed.length, ROW = 44;
  const SIGN = { severe: "▲", warning: "●", note: "○" };
  const LONG = 600, HEAD = 160, AROUND = 60, TAIL = 120; // tokens of a part that are drawn at first
  const vocabulary = { ...data.vocabulary }, partial = { ...data.partial }, special = new Set(data.special), ids = { ...data.ids };
  const place = new Map(listed.map((row, i) => [row, i])); // row number -> where its numbers stand
  const faults = listed.map(() => []);
  findings.forEach((finding, f) => finding.rows.forEach((row) => faults[place.get(row)].push(f)));
  const rank = { severe: 0, warning: 1, note: 2 };
  const worst = (i) => (faults[i].length ? Math.min(...faults[i].map((f) => rank[findings[f].severity])) : 3);
  const name = (i) => (data.names ? data.names[i] : `row ${listed[i]}`);
  const label = (k) => labels[k] ?? `response ${k + 1}`;
  const many = (n, what) => `${counted(n)} ${what}${n === 1 ? "" : "s"}`;

  // ---- state: everything that is drawn follows from these
  let shown = []; // places listed now
  let chosen = -1; // row number
  let filtered = ""; // code of the warning whose rows are listed
  let open = new Set(); // parts of the chosen row that are drawn whole

  // ---- skeleton
  frame(el, "wb-preview", "what will be trained on");
  const said = make("p", { class: "say", role: "status", "aria-live": "polite" });
  const charts = make("div", { class: "charts" });
  const warnings = make("div", { class: "warnings", role: "group", "aria-label": "warnings; press one to list its rows" });
  const search = make("input", { type: "search", placeholder: "search the text of the tokens  ( / )", "aria-label": "search the text of the tokens" });
  const sort = make("select", { "aria-label": "order of the rows" }, ...[["warnings first", "warn"], ["as they are trained on", "row"],
    ["longest prompt first", "prompt"], [`longest ${label(0)} first`, "first"], ["shortest first", "short"],
    ...(labels.length > 1 ? [["greatest difference in length first", "gap"]] : [])].map(([text, value]) => make("option", { value, text })));
  const only = make("select", { "aria-label": "rows to list" });
  const list = rowList({ label: "training rows", height: ROW, draw: drawRow, choose: (k) => choose(listed[shown[k]]) });
  const total = make("p", { class: "soft total" });
  const detail = make("div", { class: "tokens-of-row", role: "group", "aria-label": "tokens of the chosen row" });
  el.append(said, charts, warnings,
    make("div", { class: "controls" }, search, make("label", {}, "list ", only), make("label", {}, "order ", sort)),
    make("div", { class: "grid" }, make("div", {}, list.el, total), detail));

  // ---- the numbers of all rows
  said.textContent = data.say;
  for (const { name: what, text, width, counts, over } of data.spread) {
    const W = 300, H = 92, BASE = 64, step = (W - 12) / counts.length, top = Math.max(...counts, 1);
    const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `tokens of ${what}: ${text}` });
    counts.forEach((n, k) => {
      const bar = svg("rect", { class: "bar", x: 6 + k * step + 0.5, width: Math.max(1, step - 1), y: BASE - (52 * n) / top, height: (52 * n) / top });
      bar.append(svg("title", {}, `${over && k === counts.length - 1 ? `${k * width} and more` : width === 1 ? k : `${k * width} to ${(k + 1) * width - 1}`} tokens: ${counted(n)}`));
      plot.append(bar);
    });
    plot.append(svg("line", { class: "rule", x1: 6, x2: W - 6, y1: BASE, y2: BASE }), svg("text", { x: 6, y: 80 }, "0"),
      svg("text", { x: W / 2, y: 80, "text-anchor": "middle" }, "tokens"), svg("text", { x: W - 6, y: 80, "text-anchor": "end" }, over ? `${counted(width * (counts.length - 1))} and more` : counted(width * counts.length - 1)));
    charts.append(make("figure", {}, make("figcaption", {}, make("b", { text: what }), make("span", { class: "soft", text: ` ${text}` })), plot));
  }
  if (data.rule) charts.append(make("p", { class: "soft length-rule", text: data.rule }));

  // ---- warnings: each names its rows; a press lists them
  const presses = findings.map((finding) => {
    const first = finding.rows.slice(0, 6).join(", ");
    const button = make("button", { type: "button", class: `warn ${finding.severity}`, "aria-pressed": "false", onclick: () => filterBy(filtered === finding.code ? "" : finding.code) },
      make("span", { class: "sign", "aria-hidden": "true", text: SIGN[finding.severity] }), make("span", { class: "severity", text: finding.severity }),
      make("b", { text: finding.title }),
      make("span", { class: "soft rows", text: `${many(finding.count, "row")}: ${first}${finding.count > 6 ? ", …" : ""}` }));
    const why = make("p", { class: "why", text: finding.why }, " ", make("span", {}, make("b", { text: "Way out: " }), finding.remedy));
    why.hidden = true;
    warnings.append(button, why);
    return { button, why };
  });
  if (!findings.length) warnings.append(make("p", { class: "fine", text: "✓ No rule found anything in these rows." }));
  only.append(make("option", { value: "", text: "all rows" }));
  if (findings.length) only.append(make("option", { value: "*", text: "rows with a warning" }), make("option", { value: "-", text: "rows without" }));
  findings.forEach((finding) => only.append(make("option", { value: finding.code, text: finding.title })));
  function filterBy(code, tell = true) {
    filtered = code;
    findings.forEach((finding, f) => {
      presses[f].button.setAttribute("aria-pressed", String(finding.code === code));
      presses[f].why.hidden = finding.code !== code;
    });
    only.value = code;
    const pressed = presses[findings.findIndex((finding) => finding.code === code)]?.button;
    if (pressed) warnings.scrollTop = pressed.offsetTop - warnings.offsetTop - 4;
    relist();
    if (shown.length && !shown.includes(place.get(chosen))) choose(listed[shown[0]]);
    if (tell) { model.set("warning", ["*", "-"].includes(code) ? "" : code); model.save_changes(); }
  }

  // ---- the list
  const squeezed = (text) => text.toLowerCase().replace(/[\s·↵⇥]/g, "");
  const texts = new Map();
  function textOf(row) {
    if (!texts.has(row)) texts.set(row, squeezed(ids[row].map((part) => part.map((token) => vocabulary[token]).join("")).join("\u0001")));
    return texts.get(row);
  }
  const KEYS = {
    row: () => 0, warn: worst, prompt: (i) => -lengths[i][0], first: (i) => -lengths[i][1],
    short: (i) => Math.min(...lengths[i].slice(1)), gap: (i) => -Math.abs(lengths[i][1] - (lengths[i][2] ?? lengths[i][1])),
  };
  function relist() {
    const words = squeezed(search.value), code = findings.findIndex((finding) => finding.code === filtered);
    shown = [...Array(N).keys()].filter((i) => {
      if (code >= 0 && !faults[i].includes(code)) return false;
      if ((filtered === "*" && !faults[i].length) || (filtered === "-" && faults[i].length)) return false;
      return !words || (ids[listed[i]] && textOf(listed[i]).includes(words)) || squeezed(name(i)).includes(words);
    });
    const key = KEYS[sort.value];
    if (sort.value !== "row") shown.sort((a, b) => key(a) - key(b) || a - b);
    const there = Object.keys(ids).length;
    total.textContent = `${counted(shown.length)} of ${many(data.total, "row")} listed.`
      + (N < data.total ? ` The list holds ${counted(N)}, those with warnings first; preview.frame() has all.` : "")
      + (there < data.total ? ` Tokens of ${counted(there)} rows are here${live ? ", others are fetched when chosen" : "; JupyterLab and preview.tokens(row) show the others"}; search looks at those.` : "")
      + " Arrow keys move, n and p go to the next and previous warning.";
    list.show(shown.length, shown.indexOf(place.get(chosen)));
  }
  function drawRow(k) {
    const i = shown[k], row = listed[i], [prompt, ...rest] = lengths[i], found = faults[i].map((f) => findings[f]);
    const counts = rest.length > 3 ? `${rest.slice(0, 3).join(" · ")} · …` : rest.join(" · ");
    const words = ids[row] ? ids[row][0].slice(-60).filter((token) => !special.has(token)).map((token) => vocabulary[token]).join("").replaceAll("·", " ") : "";
    const signs = make("span", { class: "signs" }, ...["severe", "warning", "note"].filter((kind) => found.some((f) => f.severity === kind))
      .map((kind) => make("span", { class: kind, text: `${SIGN[kind]}${found.filter((f) => f.severity === kind).length}` })));
    if (found.length) signs.title = found.map((f) => `${f.severity}: ${f.title}`).join("\n");
    const sign = make("span", { class: "unseen", text: found.length ? `, ${found.map((f) => f.title).join(", ")}` : "" });
    return [make("div", { class: "two" }, make("span", { class: "head" }, make("b", { text: name(i) }), make("span", { class: "soft", text: ` ${prompt} → ${counts}` }), signs, sign),
      make("span", { class: "soft words", dir: "auto", text: words || "…" }))];
  }

  // ---- tokens of one row
  let mouse = ""; // where it was last seen
  const info = make("p", { class: "token-info", role: "status", "aria-live": "polite" });
  const HINT = "Point at a token, or move through a part with the arrow keys, to read its id, role and position.";
  function choose(row, tell = true) {
    if (!place.has(row)) return;
    if (row !== chosen) open = new Set();
    chosen = row;
    list.mark(shown.indexOf(place.get(row)));
    drawTokens();
    if (!ids[row] && live) model.send({ kind: "tokens", row });
    if (tell) { model.set("chosen", row); model.save_changes(); }
  }
  function drawTokens() {
    const i = place.get(chosen), parts = ids[chosen];
    info.textContent = HINT;
    const notes = make("ul", { class: "notes" }, ...faults[i].map((f) => make("li", { class: findings[f].severity },
      make("span", { class: "sign", "aria-hidden": "true", text: `${SIGN[findings[f].severity]} ` }), make("b", { text: `${findings[f].title}. ` }), findings[f].why)));
    notes.hidden = !faults[i].length;
    detail.replaceChildren(make("h4", { text: name(i) }), notes, info);
    if (!parts) {
      detail.append(make("p", { class: "soft", text: live ? "fetching the tokens …" : `The tokens of this row were left out of the page: preview.tokens(${chosen}) shows them.` }));
      return;
    }
    parts.forEach((tokens, p) => detail.append(drawPart(i, p, tokens, parts)));
    detail.append(make("p", { class: "legend soft" }, "prompt tokens are read, not scored · ", make("span", { class: "tok scored", text: "scored" }), " · ",
      make("span", { class: "tok special", text: "special" }), " · ", make("span", { class: "tok scored special end", text: "end" }),
      ...(parts.length > 2 ? [" · ", make("span", { class: "tok scored same", text: "as above" }), " · ", make("span", { class: "tok scored first", text: "first difference" })] : [])));
  }
  function leaves(parts, p) { // the token in which a response leaves the first one, -1 where it does not
    if (p < 2) return parts.length > 2 && p === 1 ? leaves([parts[0], parts[2], parts[1]], 2) : -1;
    const n = Math.min(parts[1].length, parts[p].length);
    let at = 0;
    while (at < n && parts[1][at] === parts[p][at]) at += 1;
    return at < parts[p].length ? at : -1;
  }
  function ranges(n, at, whole) { // which tokens are drawn; the gaps between open on request
    if (whole || n <= LONG) return [[0, n]];
    const wanted = [[0, HEAD], ...(at >= 0 ? [[Math.max(0, at - AROUND), Math.min(n, at + 2 * AROUND)]] : []), [n - TAIL, n]];
    const out = [];
    for (const [from, to] of wanted.sort((a, b) => a[0] - b[0])) {
      if (out.length && from <= out.at(-1)[1]) out.at(-1)[1] = Math.max(out.at(-1)[1], to); else out.push([from, to]);
    }
    return out;
  }
  function drawPart(i, p, tokens, parts) {
    const isPrompt = p === 0, cut = cuts ? cuts[i][p] : 0, ends = tokens.filter((token) => token === data.eos).length;
    const at = leaves(parts, p), what = isPrompt ? "prompt" : label(p - 1), score = !isPrompt && data.scores ? `, score ${number(data.scores[i][p - 1])}` : "";
    const whole = open.has(p), drawn = ranges(tokens.length, at, whole), n = tokens.length;
    const facts = isPrompt ? `${many(n, "token")}, not scored` : `${many(n, "token")}, all scored${score}`;
    const head = make("div", { class: "part-head" }, make("b", { text: what }), make("span", { class: "soft", text: ` ${facts}` }));
    if (!isPrompt) {
      const fine = ends === 1 && tokens.at(-1) === data.eos;
      head.append(make("span", { class: fine ? "soft" : "bad", text: fine ? " · ends with one end token" : ends ? ` · ${many(ends, "end token")}, not one at the end` : " · no end token" }));
    }
    if (cut) head.append(make("span", { class: "bad", text: isPrompt ? ` · ${many(cut, "token")} cut on the left` : ` · ${many(cut, "token")} cut, the end token among them` }));
    if (drawn.length > 1 || (whole && n > LONG)) {
      head.append(make("button", { type: "button", class: "more", text: whole ? "show less" : `show all ${counted(n)} tokens`, onclick: () => { if (whole) open.delete(p); else open.add(p); drawTokens(); } }));
    }
    if (at >= 0) head.append(make("button", { type: "button", class: "more", text: `first difference: token ${counted(at + 1)}`, onclick: () => activate(spans.findIndex((span) => Number(span.dataset.k) === at)) }));
    const uid = `wbt${Math.random().toString(36).slice(2, 9)}`;
    const box = make("div", { class: `tokens ${isPrompt ? "prompt" : p === 1 ? "chosen" : "other"}`, role: "listbox", tabindex: 0, "aria-orientation": "horizontal", "aria-label": `tokens of ${what}, ${facts}` });
    if (cut && isPrompt) box.append(make("span", { class: "cut", "aria-hidden": "true", text: `✂ ${counted(cut)} ` }));
    let before = 0, active = -1;
    for (const [from, to] of drawn) {
      if (from > before) box.append(make("span", { class: "gap", "aria-hidden": "true", text: `⋯ ${counted(from - before)} tokens ⋯` }));
      for (let k = from; k < to; k += 1) {
        const token = tokens[k], text = vocabulary[token], kind = ["tok"];
        if (!isPrompt) kind.push("scored");
        if (special.has(token)) kind.push("special");
        if (token === data.eos && !isPrompt) kind.push("end");
        if (p > 1 && (at < 0 || k < at)) kind.push("same");
        if (k === at) kind.push("first");
        box.append(make("span", { class: kind.join(" "), role: "option", id: `${uid}-${k}`, "data-k": k, "aria-selected": "false", text }));
        if (text.includes("↵")) box.append(document.createElement("br"));
      }
      before = to;
    }
    if (cut && !isPrompt) box.append(make("span", { class: "cut", "aria-hidden": "true", text: ` ✂ ${counted(cut)}` }));
    const spans = [...box.querySelectorAll(".tok")];
    function tellOf(k) {
      const token = tokens[k], roles = [isPrompt ? "prompt, not scored" : `${what}, scored`];
      if (special.has(token)) roles.push(token === data.eos ? "end token" : "special token");
      if (k === at) roles.push("first difference");
      const position = isPrompt ? data.starts[i] - n + k : data.starts[i] + k;
      const letter = partial[token] === undefined ? "" : ` · ${wholeLetter(tokens, k)}`;
      info.textContent = `token ${k + 1} of ${n} · id ${token} · “${vocabulary[token]}”${letter} · ${roles.join(", ")} · position ${position}`;
    }
    function activate(s) {
      spans[active]?.classList.remove("active");
      spans[active]?.setAttribute("aria-selected", "false");
      active = s;
      spans[s].classList.add("active");
      spans[s].setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", spans[s].id);
      spans[s].scrollIntoView({ block: "nearest" });
      tellOf(Number(spans[s].dataset.k));
    }
    box.addEventListener("pointermove", (event) => { // a scroll that brings a token under a mouse at rest is no pointing
      const place = `${event.screenX} ${event.screenY}`, span = place === mouse ? null : event.target.closest(".tok");
      mouse = place;
      if (span) tellOf(Number(span.dataset.k));
    });
    box.addEventListener("click", (event) => { const span = event.target.closest(".tok"); if (span) activate(spans.indexOf(span)); });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -n, End: n }[event.key];
      if (step === undefined || !spans.length) return;
      event.preventDefault();
      activate(Math.max(0, Math.min(spans.length - 1, (active < 0 ? (step > 0 ? -1 : 0) : active) + step)));
    });
    return make("section", { class: "part" }, head, box);
  }
  function wholeLetter(tokens, k) { // the character that a token holds a part of
    let from = k, to = k + 1, at = 0;
    while (from > 0 && partial[tokens[from - 1]] !== undefined) from -= 1;
    while (to < tokens.length && partial[tokens[to]] !== undefined) to += 1;
    const bytes = tokens.slice(from, to).flatMap((token) => partial[token].match(/../g)).map((byte) => parseInt(byte, 16));
    const here = tokens.slice(from, k).reduce((n, token) => n + partial[token].length / 2, 0);
    for (const char of new TextDecoder().decode(Uint8Array.from(bytes))) {
      at += new TextEncoder().encode(char).length;
      if (at > here) return `a part of “${/\p{Cf}|\p{Cc}/u.test(char) ? `U+${char.codePointAt(0).toString(16).toUpperCase()}` : char}”`;
    }
    return "a part of a character";
  }

  // ---- wiring
  search.addEventListener("input", relist);
  sort.addEventListener("change", relist);
  only.addEventListener("change", () => filterBy(only.value));
  el.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    const step = { n: 1, p: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    let k = shown.indexOf(place.get(chosen)) + step;
    while (k >= 0 && k < shown.length && !faults[shown[k]].length) k += step;
    if (k >= 0 && k < shown.length) choose(listed[shown[k]]);
    else info.textContent = `There is no ${step > 0 ? "next" : "previous"} row with a warning in this list.`;
  });
  model.on("change:chosen", () => { if (model.get("chosen") !== chosen) choose(model.get("chosen"), false); });
  model.on("change:warning", () => { if (model.get("warning") !== filtered && !(["*", "-"].includes(filtered) && !model.get("warning"))) filterBy(model.get("warning"), false); });
  model.on("msg:custom", (message) => {
    if (message.kind !== "tokens") return;
    ids[message.row] = message.ids;
    Object.assign(vocabulary, message.vocabulary);
    Object.assign(partial, message.partial);
    message.special.forEach((token) => special.add(token));
    if (message.row === chosen) drawTokens();
    list.refresh();
  });
  relist();
  filterBy(model.get("warning") ?? "", false);
  choose(place.has(model.get("chosen")) ? model.get("chosen") : listed[shown[0]], false);
  requestAnimationFrame(() => list.mark(shown.indexOf(place.get(chosen)))); // sizes are known once it stands in the document
}
