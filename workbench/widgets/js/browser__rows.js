// What rows, filters and labels of the preference browser mean on a page, the differences of two texts, and its two sources of
// rows: Python through anywidget (`remoteRows`), or the page's own data (`localRows`), which answers as Python does.
// characters that cannot be seen, or that turn the text around; joiners only where Latin text has no use for them
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]/g;
const tells = (c, before) => (c !== "\u200c" && c !== "\u200d") || before < 128;
const code = (c) => c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
const oneLine = (text) => text.replace(/\s+/g, " ").replace(HIDDEN, (c, at, all) => (tells(c, at ? all.charCodeAt(at - 1) : 0) ? `⟨${code(c)}⟩` : c));
const words = (n) => `${counted(n)} ${n === 1 ? "character" : "characters"}`;
const signed = (x, digits = 3) => (x === null || x === undefined ? "unknown" : `${x >= 0 ? "+" : "−"}${Math.abs(x).toFixed(digits)}`);

function put(node, text) {
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (!tells(found[0], found.index ? text.charCodeAt(found.index - 1) : 0)) continue;
    node.append(text.slice(from, found.index), make("span", { class: "hidden-char", title: `invisible character U+${code(found[0])}`, text: `U+${code(found[0])}` }));
    from = found.index + 1;
  }
  node.append(text.slice(from));
  return node;
}

// ---- what rows mean; preference_rows.py and preference_labels.py say the same in Python
const promptText = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((turn) => `${turn.role}: ${turn.content}`).join("\n"));
const snippet = (prompt) => (typeof prompt === "string" ? prompt : prompt[prompt.length - 1].content).slice(0, 160); // of a chat what was asked last
const kindOf = (raw) => ("chosen" in raw ? "pair" : "responses" in raw ? "ranking" : "rated");
function textsOf({ raw, order }) {
  return { pair: () => [raw.chosen, raw.rejected], ranking: () => order.map((k) => raw.responses[k]), rated: () => [raw.completion] }[kindOf(raw)]();
}
function isTie({ raw, order }) {
  if ("chosen" in raw) return raw.p_chosen === 0.5;
  const values = raw.scores ?? raw.ranks;
  return Boolean(values) && order.length > 1 && values[order[0]] !== null && values[order[0]] === values[order[1]];
}
function preferred(row, value = "") {
  if (value === "x") return "left out";
  if (value === "0" || (!value && isTie(row))) return "tie";
  if ("chosen" in row.raw) return value === "2" ? "rejected" : "chosen";
  return row.order ? `response ${row.order[Number(value || 1) - 1] + 1}` : "rated";
}
function relabelled({ raw, order }, value) {
  const row = structuredClone(raw);
  if (value === "x" || kindOf(raw) === "rated") return row;
  if ("chosen" in row) {
    if (value === "2") {
      for (const name of Object.keys(raw)) {
        const twin = /^chosen(_|$)/.test(name) ? `rejected${name.slice(6)}` : name.endsWith("_chosen") ? `${name.slice(0, -6)}rejected` : "";
        if (twin && twin in raw) [row[name], row[twin]] = [raw[twin], raw[name]];
      }
      if (typeof row.margin === "number") row.margin = 0 - row.margin;
    }
    if (value === "0" || "p_chosen" in row) row.p_chosen = value === "0" ? 0.5 : 1;
    return row;
  }
  const first = order[value === "0" ? 0 : Number(value) - 1], next = [first, ...order.filter((k) => k !== first)];
  for (const name of ["scores", "ranks"]) {
    if (!row[name]) continue;
    const known = row[name].filter((x) => x !== null), dealt = [...known].sort((a, b) => (name === "scores" ? b - a : a - b));
    const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    row[name] = row[name].map((_, k) => (value === "0" ? mean : dealt[next.indexOf(k)] ?? null));
  }
  return row;
}
function localOrder({ rows, columns }, texts, view, labels) {
  const wanted = view.text.trim().toLowerCase(), found = [];
  for (let n = 0; n < rows.length; n += 1) {
    const margin = columns.margin[n], label = labels.get(rows[n].i)?.[0] ?? "";
    if (view.low !== null && !(margin !== null && margin >= view.low)) continue;
    if (view.high !== null && !(margin !== null && margin <= view.high)) continue;
    if (view.source && ![columns.source[n], columns.source_chosen[n], columns.source_rejected[n]].includes(view.source)) continue;
    if (["iteration", "arm", "seed"].some((name) => view[name] && columns[name][n] !== view[name])) continue;
    const is = { all: true, relabelled: label !== "", "not relabelled": label === "", "left out": label === "x", tie: label ? label === "0" : columns.tie[n],
      identical: columns.identical[n], duplicate: columns.copies[n] > 1, "margin unknown": margin === null }[view.state];
    if (!is || (wanted && !texts(n).includes(wanted))) continue;
    found.push(n);
  }
  if (view.sort === "order") return view.down ? found.reverse() : found;
  const value = (n) => { const x = columns[view.sort][n]; return x === "" || x === null || Number.isNaN(Number(x)) ? null : Number(x); };
  const known = found.filter((n) => value(n) !== null);
  known.sort((a, b) => (view.down ? value(b) - value(a) : value(a) - value(b)));
  return [...known, ...found.filter((n) => value(n) === null)];
}

// ---- words that only one side has: the longest common subsequence, or what stands there at all where that would take too long
const CELLS = 6_000_000;
const split = (text) => text.match(/\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|[^]/gu) ?? [];
function wordDiff(left, right) {
  const a = split(left), b = split(right);
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const n = a.length - head - tail, m = b.length - head - tail, same = [new Uint8Array(a.length).fill(1), new Uint8Array(b.length).fill(1)];
  same[0].fill(0, head, head + n);
  same[1].fill(0, head, head + m);
  const rough = n * m > CELLS;
  if (rough) {
    for (const [one, other, kept] of [[a, b, same[0]], [b, a, same[1]]]) {
      const there = new Set(other.slice(head, other.length - tail));
      for (let i = head; i < one.length - tail; i += 1) kept[i] = Number(there.has(one[i]));
    }
  } else {
    const length = new Uint32Array((n + 1) * (m + 1)), at = (i, j) => i * (m + 1) + j;
    const weight = b.map((token) => (/^\s/.test(token) ? 1 : 1024)); // no word is given up for the white space around it
    for (let i = n - 1; i >= 0; i -= 1) for (let j = m - 1; j >= 0; j -= 1) {
      length[at(i, j)] = a[head + i] === b[head + j] ? length[at(i + 1, j + 1)] + weight[head + j] : Math.max(length[at(i + 1, j)], length[at(i, j + 1)]);
    }
    for (let i = 0, j = 0; i < n && j < m;) {
      if (a[head + i] === b[head + j]) { same[0][head + i] = 1; same[1][head + j] = 1; i += 1; j += 1; }
      else if (length[at(i + 1, j)] >= length[at(i, j + 1)]) i += 1; else j += 1;
    }
  }
  const runs = (tokens, kept) => tokens.reduce((all, token, i) => {
    const only = !kept[i];
    if (all.length && all[all.length - 1][1] === only) all[all.length - 1][0] += token; else all.push([token, only]);
    return all;
  }, []);
  return { sides: [runs(a, same[0]), runs(b, same[1])], rough };
}

// ---- two sources of rows behind one interface: ask, at, open, tokens, label, undo, save; what they find they `hear`
function localRows(data, hear) {
  const { rows, columns } = data, lower = [], labels = new Map(Object.entries(data.labels).map(([i, x]) => [Number(i), x])), past = [];
  let order = [];
  const texts = (n) => (lower[n] ??= [promptText(rows[n].raw.prompt), ...textsOf(rows[n])].join("\n").toLowerCase());
  const place = new Map(rows.map((row, n) => [row.i, n]));
  const tell = (i) => hear({ kind: "labels", changes: { [i]: labels.get(i)?.[0] ?? "" }, n: labels.size, undo: past.length });
  function about(row, [value, when]) {
    const [source, table] = data.origins[row.at[0]];
    return { from: preferred(row), to: preferred(row, value), when, view: "PreferenceBrowser", source, table, row: row.at[1], fingerprint: row.print };
  }
  return {
    ask(view, chosen, query) {
      order = localOrder(data, texts, view, labels);
      hear({ kind: "answer", query, count: order.length, unknown: order.filter((n) => columns.margin[n] === null).length, at: order.indexOf(place.get(chosen) ?? -1), first: 0, rows: [] });
    },
    at(k) {
      const n = order[k], row = rows[n], kind = columns.kind[n];
      return [row.i, kind, kind === "rated" ? columns.score[n] : columns.margin[n], snippet(row.raw.prompt),
        ["identical", "tie", "empty"].filter((name) => columns[name][n]), columns.copies[n], labels.get(row.i)?.[0] ?? "", textsOf(row)[0].slice(0, 80)];
    },
    open: (k) => hear({ kind: "row", place: k, row: rows[order[k]] }),
    tokens() {},
    label(i, value) { past.push([i, labels.get(i)]); labels.set(i, [value, new Date().toISOString()]); tell(i); },
    undo() {
      const [i, before] = past.pop() ?? [-1];
      if (i >= 0) { if (before) labels.set(i, before); else labels.delete(i); tell(i); }
      hear({ kind: "undone", row: i });
    },
    save(only) {
      const lines = rows.filter((row) => { const value = labels.get(row.i)?.[0]; return value !== "x" && (!only || value); }).map((row) => {
        const given = labels.get(row.i);
        return JSON.stringify(given ? { ...relabelled(row, given[0]), relabelled: about(row, given) } : row.raw);
      });
      saveFile(`${data.name}-relabelled.jsonl`, lines.map((line) => `${line}\n`).join(""), "application/jsonl");
      hear({ kind: "said", text: `${counted(lines.length)} of the ${counted(rows.length)} rows on this page are exported.` });
    },
  };
}
function remoteRows(model, hear) {
  const CHUNK = 100, known = new Map(), asked = new Set();
  let query = 0, flight = null, waiting = null;
  const keep = (first, rows) => rows.forEach((row, k) => known.set(first + k, row));
  function ask(view, chosen, number) {
    if (flight !== null) { waiting = [view, chosen, number]; return; } // only the newest question waits
    flight = number;
    model.send({ kind: "query", view, chosen, query: number });
  }
  model.on("msg:custom", (message) => {
    if (flight !== null && message.query === flight && (message.kind === "answer" || message.kind === "problem")) {
      flight = null;
      if (waiting) { const next = waiting; waiting = null; ask(...next); if (message.kind === "answer") return; }
    }
    if (message.kind === "answer") { query = message.query; known.clear(); asked.clear(); keep(message.first, message.rows); }
    if (message.kind === "window") { if (message.query !== query) return; keep(message.first, message.rows); }
    if (message.kind === "labels") for (const row of known.values()) row[6] = message.changes[row[0]] ?? row[6];
    hear(message);
  });
  return {
    ask,
    at(k) {
      const chunk = Math.floor(k / CHUNK);
      if (!known.has(k) && !asked.has(chunk)) {
        asked.add(chunk);
        setTimeout(() => model.send({ kind: "window", query, first: CHUNK * chunk, last: CHUNK * (chunk + 1) }), 0);
      }
      return known.get(k) ?? null;
    },
    open: (place) => model.send({ kind: "open", place, query }),
    tokens: (row) => model.send({ kind: "tokens", row }),
    label: (row, label) => model.send({ kind: "label", row, label }),
    undo: () => model.send({ kind: "undo" }),
    save: (only) => model.send({ kind: "export", changed_only: only }),
  };
}
