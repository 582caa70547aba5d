// The confidence ranking: one drawing routine for JupyterLab (through anywidget) and for a rendered page (through the
// page's own script). It gets data and draws; it asks nobody for anything. All text goes in as text, never as markup.
function render({ model, el, live = false }) {
  const data = model.get("data");
  const { answers, scorers, matches } = data;
  const N = answers.qid.length;
  const ROW = 26;
  const INK = { right: "var(--wb-good)", wrong: "var(--wb-bad)", unknown: "var(--wb-unknown)" };
  const SIGN = { right: "✓", wrong: "✗", unknown: "?" };
  const truth = (i) => (answers.correct[i] === 1 ? "right" : answers.correct[i] === 0 ? "wrong" : "unknown");

  // ---- state: everything that is drawn follows from these
  let scorer = scorers[0];
  let order = [], place = [], curve = [];
  let kept = 0; // answers kept, a whole tie group at a time
  let chosen = -1;
  let shown = []; // what the list shows, in order of strength

  const equal = (a, b) => Math.abs(a - b) < 5e-10;
  function sortBy(next) {
    scorer = next;
    order = [...Array(N).keys()].sort((a, b) => scorer.score[b] - scorer.score[a] || a - b);
    place = Array(N);
    order.forEach((i, k) => { place[i] = k; });
    // accuracy of the first k, expected over random orders inside a group of ties; null while nobody knows
    curve = [];
    let known = 0, right = 0;
    for (let start = 0; start < N;) {
      let end = start, groupKnown = 0, groupRight = 0;
      while (end < N && equal(scorer.score[order[end]], scorer.score[order[start]])) {
        if (answers.correct[order[end]] !== null) { groupKnown += 1; groupRight += answers.correct[order[end]]; }
        end += 1;
      }
      for (let k = start; k < end; k += 1) {
        const share = (k + 1 - start) / (end - start);
        const total = known + share * groupKnown;
        curve.push(total > 0 ? (right + share * groupRight) / total : null);
      }
      known += groupKnown; right += groupRight; start = end;
    }
  }
  function wholeGroup(k) {
    let end = Math.max(0, Math.min(N, Math.round(k)));
    while (end > 0 && end < N && equal(scorer.score[order[end]], scorer.score[order[end - 1]])) end += 1;
    return end;
  }

  // ---- skeleton
  frame(el, "wb-ranking", "answers ranked by confidence");
  const say = make("p", { class: "say", role: "status", "aria-live": "polite" });
  const by = make("select", { "aria-label": "score that orders the answers" },
    ...scorers.map((s, k) => make("option", { value: k, text: s.label })));
  const search = make("input", { type: "search", placeholder: "search question or answer", "aria-label": "search question or answer" });
  const which = make("select", { "aria-label": "answers to list" },
    ...["all answers", "kept", "not kept", "right", "wrong", "unknown"].map((name) => make("option", { value: name, text: name })));
  const range = make("input", { type: "range", min: 0, max: N, step: 1, "aria-label": "answers kept, most trusted first" });
  const list = rowList({ label: "answers, most trusted first", height: ROW, draw: drawRow, choose: (k) => choose(shown[k]) });
  const total = make("span", { class: "soft" });
  const plot = svg("svg", { viewBox: "0 0 460 230", role: "img", "aria-label": "accuracy of the answers kept against the share kept" });
  const matrix = make("canvas", { width: 460, height: 250, role: "img", "aria-label": "who was preferred to whom, by place" });
  const cell = make("p", { class: "soft cell" });
  const detail = make("div", { class: "detail", "aria-label": "the chosen answer" });
  const csvAll = make("button", { type: "button", text: "CSV, all" });
  const csvKept = make("button", { type: "button", text: "CSV, kept" });
  const exports = make("span", { class: "exports" }, "export ", csvAll, csvKept);
  if (live) exports.append(make("button", { type: "button", text: "Parquet, kept", onclick: () => model.send({ kind: "parquet", qids: order.slice(0, kept).map((i) => answers.qid[i]), scorer: scorer.name }) }));
  el.append(
    make("div", { class: "controls" }, make("label", {}, "order by ", by), search, make("label", {}, "list ", which), exports),
    make("div", { class: "grid" },
      make("div", {}, list.el, total),
      make("div", {}, say, plot, range, make("div", { class: "matrix" }, matrix, cell))),
    detail,
  );
  if (!matches) el.querySelector(".matrix").hidden = true;

  // ---- the list: only rows that can be seen exist
  function filter() {
    const words = search.value.toLowerCase().trim();
    const wanted = which.value;
    shown = order.filter((i) => {
      if (wanted === "kept" && place[i] >= kept) return false;
      if (wanted === "not kept" && place[i] < kept) return false;
      if (["right", "wrong", "unknown"].includes(wanted) && truth(i) !== wanted) return false;
      return !words || `${answers.qid[i]} ${answers.question[i]} ${answers.answer[i]}`.toLowerCase().includes(words);
    });
    total.textContent = `${counted(shown.length)} of ${counted(N)} answers listed; arrow keys choose one`;
    list.show(shown.length, shown.indexOf(chosen));
  }
  let low = 0, high = 1;
  function scale() {
    low = scorer.score[0] ?? 0; high = low;
    for (let i = 0; i < N; i += 1) {
      low = Math.min(low, scorer.lower ? scorer.lower[i] ?? scorer.score[i] : scorer.score[i]);
      high = Math.max(high, scorer.upper ? scorer.upper[i] ?? scorer.score[i] : scorer.score[i]);
    }
  }
  const across = (x) => (high > low ? (100 * (x - low)) / (high - low) : 50);
  function drawRow(k) {
    const i = shown[k], kind = truth(i);
    const bar = make("span", { class: "bar-cell", "aria-hidden": "true" });
    if (scorer.lower && scorer.lower[i] !== null) {
      const from = across(scorer.lower[i]);
      bar.append(make("i", { class: "whisker", style: `left:${from}%;width:${Math.max(0.5, across(scorer.upper[i]) - from)}%` }));
    }
    bar.append(make("i", { class: "dot", style: `left:${across(scorer.score[i])}%;background:${INK[kind]}` }));
    return [[make("span", { class: "place", text: place[i] + 1 }), make("span", { class: "sign", style: `color:${INK[kind]}`, text: SIGN[kind], title: kind }),
      bar, make("span", { class: "words", text: answers.question[i] })], place[i] < kept ? "kept" : ""];
  }

  // ---- the threshold
  const X = (k) => 44 + (400 * k) / N, Y = (a) => 190 - 170 * a;
  const line = svg("path", { class: "curve", fill: "none" });
  const cut = svg("line", { class: "cut", y1: 14, y2: 194 });
  const knob = svg("circle", { class: "knob", r: 7 });
  for (const a of [0, 0.25, 0.5, 0.75, 1]) {
    const text = svg("text", { x: 38, y: Y(a) + 4, "text-anchor": "end" });
    text.textContent = `${100 * a} %`;
    plot.append(svg("line", { class: "rule", x1: 44, x2: 444, y1: Y(a), y2: Y(a) }), text);
  }
  for (const [x, anchor, words] of [[44, "start", "0"], [244, "middle", "share of answers kept"], [444, "end", "100 %"]]) {
    const text = svg("text", { x, y: 212, "text-anchor": anchor });
    text.textContent = words;
    plot.append(text);
  }
  plot.append(line, cut, knob);
  function drawCurve() {
    const step = Math.max(1, Math.floor(N / 800)); // no screen shows more
    let path = "";
    for (let k = 0; k < N; k += k < 100 ? 1 : step) if (curve[k] !== null) path += `${path ? "L" : "M"}${X(k + 1).toFixed(1)} ${Y(curve[k]).toFixed(1)}`;
    line.setAttribute("d", path || "M0 0");
  }
  function drawCut() {
    const x = X(kept), accuracy = kept ? curve[kept - 1] : null;
    for (const name of ["x1", "x2"]) cut.setAttribute(name, x);
    knob.setAttribute("cx", x);
    knob.setAttribute("cy", accuracy === null ? 190 : Y(accuracy));
    range.value = kept;
    const all = N ? curve[N - 1] : null;
    const right = accuracy === null ? (kept ? "nobody knows how many are right" : "nothing is kept") : `${percent(accuracy)} of them right`;
    const border = kept && kept < N ? `, ${scorer.label} of ${number(scorer.score[order[kept - 1]])} and more` : "";
    say.textContent = `${counted(kept)} of ${counted(N)} answers pass (${percent(N ? kept / N : 0)}${border}): ${right}`
      + `${all === null ? "" : `; of all answers ${percent(all)}`}.`;
    range.setAttribute("aria-valuetext", say.textContent);
  }
  function keep(k, tell = true) {
    kept = wholeGroup(k);
    drawCut();
    if (["kept", "not kept"].includes(which.value)) filter(); else list.refresh();
    if (tell) { model.set("kept", kept); model.save_changes(); }
  }
  range.addEventListener("input", () => {
    const asked = Number(range.value); // downwards a step must leave its group of ties
    let k = asked;
    while (k > 0 && k < kept && wholeGroup(k) >= kept) k -= 1;
    keep(k);
  });
  function drag(event) {
    const box = plot.getBoundingClientRect();
    keep(((event.clientX - box.left) * (460 / box.width) - 44) * (N / 400));
  }
  plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); drag(event); });
  plot.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });

  // ---- who was preferred to whom, in bins of places
  let bins = 0, wins = [], met = [];
  function drawMatrix() {
    if (!matches) return;
    bins = Math.min(30, N);
    wins = Array.from({ length: bins }, () => new Float64Array(bins));
    met = Array.from({ length: bins }, () => new Float64Array(bins));
    const bin = (i) => Math.min(bins - 1, Math.floor((place[i] * bins) / N));
    matches.left.forEach((left, m) => {
      const a = bin(left), b = bin(matches.right[m]), y = matches.outcome[m];
      wins[a][b] += y; wins[b][a] += 1 - y; met[a][b] += 1; met[b][a] += 1;
    });
    const pen = matrix.getContext("2d"), side = Math.floor(240 / bins);
    const textColour = ink(el, "ink");
    pen.clearRect(0, 0, 460, 250);
    for (let a = 0; a < bins; a += 1) {
      for (let b = 0; b < bins; b += 1) {
        if (!met[a][b]) continue;
        const share = wins[a][b] / met[a][b];
        pen.fillStyle = share >= 0.5 ? `rgba(0,114,178,${(2 * share - 1) * 0.9 + 0.06})` : `rgba(213,94,0,${(1 - 2 * share) * 0.9 + 0.06})`;
        pen.fillRect(b * side, a * side, side, side);
      }
    }
    pen.fillStyle = textColour;
    pen.font = "12px system-ui, sans-serif";
    ["row preferred", "evenly", "column preferred"].forEach((words, k) => {
      pen.fillStyle = ["rgba(0,114,178,.96)", "rgba(127,127,127,.2)", "rgba(213,94,0,.96)"][k];
      pen.fillRect(250, 20 + 24 * k, 14, 14);
      pen.fillStyle = textColour;
      pen.fillText(words, 272, 32 + 24 * k);
    });
    pen.fillText("most trusted: top and left", 250, 110);
    pen.fillText("point at a field to read it", 250, 128);
  }
  matrix.addEventListener("pointermove", (event) => {
    const box = matrix.getBoundingClientRect();
    const [b, a] = [event.clientX - box.left, event.clientY - box.top].map((at) => Math.floor((at * (460 / box.width)) / Math.floor(240 / bins)));
    if (!(met[a] && met[a][b])) { cell.textContent = ""; return; }
    const span = (k) => { const from = Math.ceil((k * N) / bins) + 1, to = Math.ceil(((k + 1) * N) / bins); return from === to ? `place ${from}` : `places ${from} to ${to}`; };
    cell.textContent = `${span(a)} against ${span(b)}: preferred in ${percent(wins[a][b] / met[a][b])} of ${met[a][b]}`;
  });

  // ---- one answer and its matches
  const games = matches ? Array.from({ length: N }, () => []) : null;
  if (matches) matches.left.forEach((left, m) => { games[left].push(m); games[matches.right[m]].push(m); });
  function choose(i, tell = true) {
    chosen = i;
    list.mark(shown.indexOf(i));
    const kind = truth(i);
    const facts = make("p", { class: "soft" });
    facts.textContent = scorers.map((s) => {
      const interval = s.lower && s.lower[i] !== null ? ` [${number(s.lower[i])}, ${number(s.upper[i])}]` : "";
      return `${s.label} ${number(s.score[i])}${interval}`;
    }).join(" · ");
    detail.replaceChildren(
      make("h4", {}, `Place ${place[i] + 1} of ${N} · `, make("span", { style: `color:${INK[kind]}`, text: `${SIGN[kind]} ${kind}` }), ` · ${answers.qid[i]}`),
      make("p", { class: "text", text: answers.question[i] }), make("p", { class: "text" }, make("b", { text: "Answer: " }), String(answers.answer[i])), facts);
    if (games) {
      const body = make("tbody");
      for (const m of games[i]) {
        const first = matches.left[m] === i, other = first ? matches.right[m] : matches.left[m];
        const y = first ? matches.outcome[m] : 1 - matches.outcome[m];
        const verdict = matches.status[m] === "unparsed" ? "reply not read" : y === 0.5 ? "tie" : y === 1 ? "surer of this one" : "surer of the other";
        body.append(make("tr", {}, make("td", { text: verdict }), make("td", { text: first ? "first" : "second" }), make("td", { text: place[other] + 1 }),
          make("td", {}, make("button", { type: "button", class: "link", text: answers.question[other], onclick: () => choose(other) })),
          make("td", { class: "soft", text: matches.texts ? matches.texts[matches.reply[m]] : "" })));
      }
      const head = make("tr", {}, ...["the model was", "this one shown", "the other's place", "the other question", "reply"].map((t) => make("th", { text: t })));
      detail.append(make("table", {}, make("thead", {}, head), body));
    }
    if (tell) { model.set("chosen", String(answers.qid[i])); model.save_changes(); }
  }

  // ---- export
  function csv(rows) {
    const head = ["rank", "qid", "question", "answer", "correct", "score", "lower", "upper", "kept"];
    return csvLine(head) + rows.map((i) => csvLine([place[i] + 1, answers.qid[i], answers.question[i], answers.answer[i], answers.correct[i], scorer.score[i],
      scorer.lower ? scorer.lower[i] : null, scorer.upper ? scorer.upper[i] : null, place[i] < kept])).join("");
  }
  csvAll.addEventListener("click", () => saveFile("ranking.csv", csv(order), "text/csv"));
  csvKept.addEventListener("click", () => saveFile("ranking-kept.csv", csv(order.slice(0, kept)), "text/csv"));

  // ---- wiring
  function redraw() { scale(); drawCurve(); drawMatrix(); filter(); drawCut(); }
  by.addEventListener("change", () => { const before = kept; sortBy(scorers[Number(by.value)]); kept = wholeGroup(before); redraw(); if (chosen >= 0) choose(chosen, false); });
  search.addEventListener("input", filter);
  which.addEventListener("change", filter);
  model.on("change:kept", () => { if (model.get("kept") !== kept) keep(model.get("kept"), false); });
  model.on("msg:custom", (message) => { if (message.kind === "saved") say.textContent = message.text; });
  sortBy(scorer);
  kept = wholeGroup(model.get("kept") ?? N / 2);
  redraw();
  if (N) choose(order[0], false);
  requestAnimationFrame(() => { list.refresh(); drawMatrix(); }); // sizes and colours are known once it stands in the document
}
