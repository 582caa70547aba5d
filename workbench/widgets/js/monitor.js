// The training monitor: one drawing routine for JupyterLab (through anywidget) and for a rendered page (through the page's
// own script). Small charts with one cursor, what the policy writes meanwhile, and two diagnoses. All text goes in as text.
function render({ model, el, live = false }) {
  const W = 360, H = 200, LEFT = 50, RIGHT = 10, TOP = 8, BOTTOM = 36;
  let data = model.get("data");

  // ---- state: everything that is drawn follows from these
  const hidden = new Set(), closed = new Set(); // arms switched off by name, panels by title
  const met = new Map(); // panels that were all 0 when they were first seen, and whether they still are
  let cursor = null; // place on the x axis; null is the end
  let places = [], charts = [];
  let shown = {}; // what the lower sections drew last

  // ---- small tools
  const fmt = (x) => {
    if (x === null || x === undefined || Number.isNaN(x)) return "–";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return x.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
    return String(Number(x.toPrecision(size >= 100 ? 4 : 3))).replace(/^-/, "−");
  };
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const code = (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const visible = (text) => (text === "" ? "(empty)" : String(text).replace(HIDDEN, code));
  const say = (x) => (x === null || x === undefined ? "" : fmt(x));
  const seconds = () => axis.value === "minutes";
  const xs = (line) => (seconds() ? line.t : line.x);
  const share = (name, value) => { model.set(name, value); model.save_changes(); };

  // ---- skeleton
  frame(el, "wb-monitor", "training monitor");
  const state = make("p", { class: "state" });
  const axis = make("select", { "aria-label": "horizontal axis" }, make("option", { value: "steps", text: "optimiser steps" }));
  const smooth = make("input", { type: "range", min: 0, max: 0.95, step: 0.05, "aria-label": "smoothing of the lines" });
  const smoothText = make("span", { class: "soft" });
  const logs = make("input", { type: "checkbox" });
  const seedsToo = make("input", { type: "checkbox", checked: "" });
  const picker = make("div", { class: "picks" });
  const legend = make("div", { class: "legend", role: "group", "aria-label": "arms shown" });
  const slider = make("input", { type: "range", min: 0, step: 1, class: "cursor", "aria-label": "step that the values below the charts are of" });
  const where = make("span", { class: "where", role: "status", "aria-live": "polite" });
  const grid = make("div", { class: "charts" });
  const empty = make("p", { class: "empty" });
  const csvButton = make("button", { type: "button", text: "CSV, curves" });
  const csvMeasures = make("button", { type: "button", text: "CSV, diagnosis" });
  const run = make("select", { "aria-label": "training that is diagnosed" });
  const overview = make("div", { class: "overview scroll", tabindex: 0, role: "region", "aria-label": "verdicts of all arms" });
  const cards = make("div", { class: "cards" });
  const lists = make("div", { class: "lists" });
  const runNotes = make("ul", { class: "notes" });
  const prompt = make("select", { "aria-label": "prompt" });
  const look = make("input", { type: "range", min: 0, step: 1, "aria-label": "probed step that is compared with the start" });
  const lookText = make("span", { class: "where", role: "status", "aria-live": "polite" });
  const asked = make("p", { class: "text", dir: "auto" });
  const written = make("div", { class: "written" });
  const notes = make("ul", { class: "notes" });
  const curves = make("div", {},
    make("div", { class: "controls" }, make("label", {}, "across ", axis), make("label", {}, "smoothing ", smooth, " ", smoothText),
      make("label", {}, logs, " log scale where it helps"), make("label", { class: "seeds" }, seedsToo, " single seeds"),
      make("details", { class: "picker" }, make("summary", { text: "charts" }), picker), make("span", { class: "exports" }, "export ", csvButton, csvMeasures)),
    legend, make("div", { class: "cursor-row" }, make("label", {}, "values at ", slider), where), grid);
  const diagnosed = make("section", { class: "diagnosis", "aria-label": "diagnosis" }, make("h4", { text: "Diagnosis" }), overview,
    make("div", { class: "controls" }, make("label", {}, "of ", run)), cards, lists, runNotes);
  const samples = make("section", { class: "samples", "aria-label": "samples while training" }, make("h4", { text: "What the policy writes" }),
    make("div", { class: "controls" }, make("label", {}, "prompt ", prompt), make("label", {}, "compare the start with ", look), lookText), asked, written);
  el.append(state, empty, curves, diagnosed, samples, notes);

  // ---- lines
  function smoothed(ys) {
    const keep = Number(smooth.value);
    if (!keep) return ys;
    let sum = 0, weight = 0;
    return ys.map((y) => {
      if (y === null) return null;
      sum = keep * sum + (1 - keep) * y; weight = keep * weight + (1 - keep);
      return sum / weight;
    });
  }
  const drawable = (line) => !hidden.has(data.arms[line.arm].name) && (line.bold || seedsToo.checked) && xs(line);
  function ticks(low, high, most) {
    const raw = (high - low) / most, base = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * base).find((s) => s >= raw * 0.999) ?? base;
    const found = [];
    for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + 1e-9 * step; x += step) found.push(Math.abs(x) < step * 1e-9 ? 0 : x);
    return found;
  }
  function logTicks(low, high) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const k of high / low > 100 ? [1] : [1, 2, 5]) if (k * 10 ** e >= low * 0.999 && k * 10 ** e <= high * 1.001) found.push(k * 10 ** e);
    }
    return found.length > 1 ? found : [low, high];
  }
  // index of the value that counts at x: the last one at or before it, unless the line ended there
  function indexAt(points, x) {
    let k = points.length - 1;
    while (k >= 0 && (points[k] === null || points[k] > x + 1e-9)) k -= 1;
    const gap = points.length > 1 ? points[points.length - 1] - points[points.length - 2] : 0;
    return k === points.length - 1 && k >= 0 && x - points[k] > gap + 1e-9 && points.length > 1 ? -1 : k;
  }
  function bounds() {
    let high = 0;
    for (const line of data.lines) for (const x of xs(line) ?? []) if (x !== null && x > high) high = x;
    return Math.max(high, 1e-9);
  }

  // ---- one small chart
  function chart(panel, number, end) {
    const lines = data.lines.filter((line) => line.panel === number && drawable(line));
    const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${panel.title}${panel.unit ? `, ${panel.unit}` : ""}, over training` });
    const values = lines.flatMap((line) => line.y.filter((y, k) => y !== null && xs(line)[k] !== null));
    const isLog = logs.checked && panel.log && values.length && values.every((y) => y > 0);
    const title = make("h5", {}, panel.title, make("span", { class: "soft", text: ` ${panel.unit}${isLog ? `${panel.unit ? ", " : ""}log` : ""}` }));
    const body = make("tbody"), readout = make("table", {}, body);
    const box = make("figure", { class: "panel" }, title, plot, readout);
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) { low = 0; high = 1; }
    if (low === high) { const pad = isLog ? low / 2 : Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
    const f = isLog ? Math.log10 : (y) => y;
    const pad = 0.05 * (f(high) - f(low));
    const X = (x) => LEFT + ((W - LEFT - RIGHT) * x) / end;
    const Y = (y) => TOP + ((H - TOP - BOTTOM) * (f(high) + pad - f(y))) / (f(high) - f(low) + 2 * pad);
    for (const y of isLog ? logTicks(low, high) : ticks(low, high, 5)) {
      plot.append(svg("line", { class: "rule", x1: LEFT, x2: W - RIGHT, y1: Y(y), y2: Y(y) }), svg("text", { x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end" }, fmt(y)));
    }
    for (const x of ticks(0, end, 5)) {
      if (!seconds() && !Number.isInteger(x)) continue;
      plot.append(svg("line", { class: "rule", x1: X(x), x2: X(x), y1: H - BOTTOM, y2: H - BOTTOM + 4 }), svg("text", { x: X(x), y: H - BOTTOM + 16, "text-anchor": "middle" }, fmt(x)));
    }
    plot.append(svg("text", { x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle" }, seconds() ? "minutes of training" : "optimiser step"));
    if (!seconds()) for (const x of data.borders) plot.append(svg("line", { class: "border", x1: X(x), x2: X(x), y1: TOP, y2: H - BOTTOM }));
    if (!values.length) plot.append(svg("text", { x: (LEFT + W) / 2, y: H / 2 - 10, "text-anchor": "middle" }, "no finite value"));
    const path = (points, ys) => {
      let text = "", pen = "M";
      ys.forEach((y, k) => {
        if (y === null || points[k] === null) { pen = "M"; return; }
        text += `${pen}${X(points[k]).toFixed(1)} ${Y(y).toFixed(1)}`; pen = "L";
      });
      return text || "M0 0";
    };
    const thick = (line) => `--c:${data.arms[line.arm].colour}`;
    for (const line of [...lines].sort((a, b) => a.bold - b.bold)) {
      const points = xs(line), kind = `line ${line.bold ? "bold" : "thin"} ${line.side ? "dashed" : ""}`;
      if (Number(smooth.value) && line.bold) plot.append(svg("path", { class: "line raw", style: thick(line), d: path(points, line.y) }));
      plot.append(svg("path", { class: kind, style: thick(line), d: path(points, smoothed(line.y)) }));
      // a value between two gaps has no line to be seen on; of a probe's few values each is marked
      line.y.forEach((y, k) => {
        if (y !== null && points[k] !== null && (line.y.length < 12 || ((line.y[k - 1] ?? null) === null && (line.y[k + 1] ?? null) === null))) plot.append(svg("circle", { class: "alone", style: thick(line), cx: X(points[k]), cy: Y(y), r: line.bold ? 2.5 : 1.5 }));
      });
    }
    const cross = svg("line", { class: "cross", y1: TOP, y2: H - BOTTOM });
    plot.append(cross);
    const rows = lines.filter((line) => line.bold).map((line) => {
      const arm = data.arms[line.arm], name = `${arm.name}${panel.names[line.side] ? `, ${panel.names[line.side]}` : ""}`;
      const cell = make("td", { class: "value" }), dot = svg("circle", { class: "dot", style: thick(line), r: 3.5 });
      body.append(make("tr", {}, make("td", {}, make("i", { class: `swatch ${line.side ? "dashed" : ""}`, style: thick(line) }), visible(name)), cell));
      plot.append(dot);
      return { line, cell, dot };
    });
    const point = (event) => {
      const at = plot.getBoundingClientRect();
      moveTo((end * (((event.clientX - at.left) * W) / at.width - LEFT)) / (W - LEFT - RIGHT));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", (event) => { point(event); slider.focus({ preventScroll: true }); });
    function place(x) {
      for (const name of ["x1", "x2"]) cross.setAttribute(name, X(x));
      for (const { line, cell, dot } of rows) {
        const k = indexAt(xs(line), x), y = k < 0 ? null : line.y[k];
        const others = line.n > 1 ? data.lines.filter((l) => l.panel === number && l.side === line.side && l.arm === line.arm && !l.bold) : [];
        const all = others.map((l) => { const at = indexAt(xs(l) ?? [], x); return at < 0 ? null : l.y[at]; }).filter((v) => v !== null);
        cell.textContent = fmt(y) + (all.length > 1 ? ` (${fmt(Math.min(...all))} to ${fmt(Math.max(...all))})` : "");
        dot.setAttribute("visibility", y === null ? "hidden" : "visible");
        if (y !== null) { dot.setAttribute("cx", X(xs(line)[k])); dot.setAttribute("cy", Y(isLog && y <= 0 ? low : y)); }
      }
    }
    return { box, place };
  }
  function moveTo(x, tell = true) {
    if (!places.length) return;
    let k = 0;
    while (k + 1 < places.length && Math.abs(places[k + 1] - x) <= Math.abs(places[k] - x)) k += 1;
    goTo(k, tell);
  }
  function goTo(k, tell) {
    const last = places.length - 1;
    cursor = k >= last ? null : places[k];
    slider.value = k;
    const text = seconds() ? `${fmt(places[k])} minutes` : `step ${places[k]}`;
    where.textContent = `${text}${k >= last ? ", the last" : ""}`;
    slider.setAttribute("aria-valuetext", where.textContent);
    for (const one of charts) one.place(places[k]);
    if (tell && !seconds()) share("step", k >= last ? -1 : places[k]);
  }
  function drawCharts() {
    const end = bounds();
    const open = data.panels.map((panel, k) => [panel, k]).filter(([panel]) => !closed.has(panel.title));
    charts = open.map(([panel, k]) => chart(panel, k, end));
    grid.replaceChildren(...charts.map((one) => one.box));
    places = [...new Set(data.lines.filter(drawable).flatMap((line) => xs(line)).filter((x) => x !== null))].sort((a, b) => a - b);
    slider.max = Math.max(0, places.length - 1);
    slider.disabled = places.length < 2;
    smoothText.textContent = Number(smooth.value) ? Number(smooth.value).toFixed(2) : "none";
    smooth.setAttribute("aria-valuetext", smoothText.textContent);
    if (places.length) moveTo(cursor ?? places[places.length - 1], false);
    else where.textContent = "";
  }

  function closeQuiet() { // a chart that says 0 from end to end starts closed, and opens when it says more
    for (const panel of data.panels) {
      if (panel.quiet && !met.has(panel.title)) { closed.add(panel.title); met.set(panel.title, true); }
      if (!panel.quiet && met.get(panel.title)) { closed.delete(panel.title); met.set(panel.title, false); }
    }
  }

  // ---- legend and switches
  function drawControls() {
    const key = JSON.stringify([data.arms, data.panels.map((panel) => [panel.title, panel.quiet]), data.lines.some((line) => line.t)]);
    if (key === shown.controls) return; // a control that is made anew loses the focus, and news come every second
    shown.controls = key;
    legend.replaceChildren(...data.arms.map((arm) => make("button", {
      type: "button", "aria-pressed": String(!hidden.has(arm.name)), style: `--c:${arm.colour}`,
      onclick: (event) => {
        if (!hidden.delete(arm.name)) hidden.add(arm.name);
        event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(arm.name)));
        drawCharts();
      },
    }, make("i", { class: "swatch", style: `--c:${arm.colour}` }), visible(arm.name), arm.seeds > 1 ? make("span", { class: "soft", text: ` mean of ${arm.seeds} seeds` }) : "")));
    picker.replaceChildren(...data.panels.map((panel) => {
      const box = make("input", { type: "checkbox", onchange: () => { if (!closed.delete(panel.title)) closed.add(panel.title); drawCharts(); } });
      box.checked = !closed.has(panel.title);
      return make("label", {}, box, ` ${panel.title}`, panel.quiet ? make("span", { class: "soft", text: " all 0" }) : "");
    }));
    el.querySelector(".seeds").hidden = !data.arms.some((arm) => arm.seeds > 1);
    const timed = data.lines.some((line) => line.t && line.t.some((t) => t !== null));
    if (timed && axis.options.length < 2) axis.append(make("option", { value: "minutes", text: "minutes" }));
  }

  // ---- diagnosis
  const KIND = (words) => (/^no |no sign of harm|does not favour length; own samples not/.test(words) ? "good" : /harmful|drift, and/.test(words) ? "bad" : "open");
  const MARK = { good: "✓", bad: "✗", open: "?" };
  const verdictOf = (words) => make("span", { class: `found ${KIND(words)}` }, make("b", { text: MARK[KIND(words)], "aria-hidden": "true" }), ` ${words}`);
  const chosenRun = () => data.runs.find((one) => one.name === run.value) ?? data.runs.find((one) => one.diagnosis || one.samples);
  const interval = (m) => (m.lower === null ? "" : ` [${fmt(m.lower)}, ${fmt(m.upper)}]`);
  function card(found, verdict) {
    const body = make("tbody");
    for (const m of found.measures.filter((one) => one.question === verdict.question)) {
      body.append(make("tr", {}, make("td", {}, m.measure, m.unit ? make("span", { class: "soft", text: ` ${m.unit}` }) : ""), make("td", { text: say(m.before) }),
        make("td", { text: say(m.after) }), make("td", { text: (say(m.difference) + interval(m)).trim() }), make("td", { text: m.n })));
    }
    const head = make("tr", {}, ...["measure", "start", "now", "change [95 % interval]", "n"].map((text) => make("th", { scope: "col", text })));
    return make("div", { class: "card" }, make("h5", { text: verdict.question }), make("p", {}, verdictOf(verdict.verdict)), make("div", { class: "sides" }, make("div", {},
      make("p", { class: "because", text: `Because ${verdict.because}.` }),
      verdict.remedies.length ? make("details", { open: "" }, make("summary", { text: "what to do" }), make("ul", {}, ...verdict.remedies.map((text) => make("li", { text })))) : ""),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `measures: ${verdict.question}` }, make("table", {}, make("thead", {}, head), body))));
  }
  function rowsList(title, rows, facts) {
    if (!rows.length) return "";
    return make("details", {}, make("summary", { text: `${rows.length} ${title}` }), ...rows.map((row) => make("div", { class: "pair" },
      make("p", { class: "soft", text: `row ${row.row} · ${facts(row)}` }),
      ...["prompt", "chosen", "rejected"].map((name) => make("p", { class: "text", dir: "auto" }, make("b", { text: `${name}: ` }), visible(row[name]))))));
  }
  function drawDiagnosis(force = false) {
    const told = data.runs.filter((one) => one.diagnosis);
    diagnosed.hidden = !told.length;
    csvMeasures.hidden = !told.length;
    const usable = data.runs.filter((one) => one.diagnosis || one.samples);
    const names = JSON.stringify(usable.map((one) => one.name));
    if (shown.names !== names) {
      const before = run.value || model.get("run");
      run.replaceChildren(...usable.map((one) => make("option", { value: one.name, text: visible(one.name) })));
      if (usable.some((one) => one.name === before)) run.value = before;
      shown.names = names;
    }
    const one = chosenRun(), found = one?.diagnosis;
    const key = JSON.stringify([found, told.map((r) => r.diagnosis.verdicts.map((v) => v.verdict))]);
    if (!told.length || (!force && key === shown.diagnosis)) return;
    shown.diagnosis = key;
    const questions = [...new Set(told.flatMap((r) => r.diagnosis.verdicts.map((v) => v.question)))];
    const armRows = told.length < 2 ? [] : data.arms.flatMap((arm, k) => {
      const own = told.filter((r) => r.arm === k);
      const cells = questions.map((question) => {
        const count = new Map();
        for (const r of own) for (const v of r.diagnosis.verdicts) if (v.question === question) count.set(v.verdict, (count.get(v.verdict) ?? 0) + 1);
        return make("td", {}, ...[...count].map(([text, n]) => make("div", {}, verdictOf(own.length > 1 ? `${text} (${n} of ${own.length} seeds)` : text))));
      });
      return own.length ? [make("tr", {}, make("th", { scope: "row" }, make("i", { class: "swatch", style: `--c:${arm.colour}` }), ` ${visible(arm.name)}`), ...cells)] : [];
    });
    overview.hidden = !armRows.length;
    overview.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...["arm", ...questions].map((text) => make("th", { scope: "col", text })))),
      make("tbody", {}, ...armRows)));
    if (!found) { cards.replaceChildren(make("p", { class: "soft", text: "Nothing to diagnose this training from." })); lists.replaceChildren(); runNotes.replaceChildren(); return; }
    cards.replaceChildren(...found.verdicts.map((verdict) => card(found, verdict)));
    const nats = (row) => `chosen ${fmt(row.change)}, rejected ${fmt(row.rejected_change)}`;
    lists.replaceChildren(rowsList("held-out rows whose chosen response fell most", found.falls, nats),
      rowsList("held-out rows whose two responses are most alike", found.alike, (row) => `edit similarity ${fmt(row.similarity)} · ${nats(row)}`));
    runNotes.replaceChildren(...found.notes.map((text) => make("li", { text })));
  }

  // ---- samples
  function drawSamples(force = false) {
    const own = chosenRun()?.samples;
    samples.hidden = !own;
    const key = JSON.stringify([own, chosenRun()?.name]);
    if (!own || (!force && key === shown.samples)) return;
    shown.samples = key;
    const at = Math.min(Number(model.get("prompt")) || 0, own.prompts.length - 1), last = own.steps.length - 1;
    prompt.replaceChildren(...own.prompts.map((p, k) => make("option", { value: k, text: `${k + 1}: ${visible(p.text).slice(0, 60)}` })));
    prompt.value = Math.max(0, at);
    const wanted = Number(model.get("look") ?? -1);
    look.max = last;
    look.disabled = last < 1;
    look.value = wanted < 0 || wanted > last ? last : wanted;
    const right = Number(look.value), p = own.prompts[Number(prompt.value)];
    lookText.textContent = `step ${own.steps[right]}${right === last ? ", the last" : ""}`;
    look.setAttribute("aria-valuetext", lookText.textContent);
    asked.replaceChildren(make("b", { text: "prompt: " }), visible(p.text));
    const column = (k) => make("div", {}, make("h5", { text: k === 0 ? `start (step ${own.steps[0]})` : `step ${own.steps[k]}` }), ...p.at[k].map(([text, length, ended, quality]) => make("div", { class: "sample" },
      make("p", { class: "text", dir: "auto", text: visible(text) }),
      make("p", { class: "soft", text: `${counted(length)} tokens · ${ended ? "ended" : "cut off at the limit"}${quality === null ? "" : ` · quality ${fmt(quality)}`}` }))));
    written.replaceChildren(column(0), ...(right > 0 ? [column(right)] : []));
    if (own.left_out) written.append(make("p", { class: "soft", text: `${own.left_out} more prompts are in the run's probe folder.` }));
  }

  // ---- all of it
  function drawState() {
    const isEmpty = !data.arms.length;
    empty.hidden = !isEmpty;
    curves.hidden = isEmpty;
    empty.textContent = `No metrics in ${data.folders.map(visible).join(", ")} yet. The curves appear here when a training writes metrics.jsonl there.`;
    const trainings = `${counted(data.runs.length)} ${data.runs.length === 1 ? "training" : "trainings"} in ${data.folders.map(visible).join(", ")}`;
    state.replaceChildren(data.following ? make("span", { class: "live", text: "● live " }) : "", isEmpty ? "" : trainings);
    notes.replaceChildren(...data.notes.map((text) => make("li", { text: visible(text) })));
  }
  function draw() {
    drawState();
    closeQuiet();
    drawControls();
    drawCharts();
    drawDiagnosis();
    drawSamples();
  }
  axis.addEventListener("change", () => { cursor = null; drawCharts(); });
  smooth.addEventListener("input", () => { share("smoothing", Number(smooth.value)); drawCharts(); });
  for (const box of [logs, seedsToo]) box.addEventListener("change", drawCharts);
  slider.addEventListener("input", () => goTo(Number(slider.value), true));
  run.addEventListener("change", () => { share("run", run.value); drawDiagnosis(true); drawSamples(true); });
  prompt.addEventListener("change", () => { share("prompt", Number(prompt.value)); drawSamples(true); });
  look.addEventListener("input", () => { share("look", Number(look.value)); drawSamples(true); });
  csvButton.addEventListener("click", () => saveFile("curves.csv", csvLine(["arm", "seed", "chart", "unit", "series", "step", "value"]) + data.lines.filter((line) => line.seed !== null || line.n === 1)
    .flatMap((line) => line.y.map((y, k) => csvLine([data.arms[line.arm].name, line.seed, data.panels[line.panel].title, data.panels[line.panel].unit, data.panels[line.panel].names[line.side], line.x[k], y]))).join(""), "text/csv"));
  csvMeasures.addEventListener("click", () => {
    const columns = ["question", "measure", "unit", "before", "after", "difference", "lower", "upper", "n"];
    saveFile("diagnosis.csv", csvLine(["training", ...columns, "verdict"]) + data.runs.filter((one) => one.diagnosis).flatMap((one) => one.diagnosis.measures.map((m) => csvLine(
      [one.name, ...columns.map((name) => m[name]), one.diagnosis.verdicts.find((v) => v.question === m.question).verdict]))).join(""), "text/csv");
  });
  model.on("change:data", () => { data = model.get("data"); draw(); });
  model.on("change:step", () => { const step = model.get("step"); if (!seconds() && places.length) moveTo(step < 0 ? places[places.length - 1] : step, false); });
  model.on("change:smoothing", () => { if (Number(smooth.value) !== model.get("smoothing")) { smooth.value = model.get("smoothing"); drawCharts(); } });
  model.on("change:run", () => { if (model.get("run") && run.value !== model.get("run")) { run.value = model.get("run"); drawDiagnosis(true); drawSamples(true); } });
  for (const name of ["prompt", "look"]) model.on(`change:${name}`, () => drawSamples(true));
  smooth.value = model.get("smoothing") ?? 0;
  const first = Number(model.get("step") ?? -1);
  cursor = first < 0 ? null : first;
  draw();
}
