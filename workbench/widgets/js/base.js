// What every view uses: nodes, numbers as text, files to save, and a list whose rows exist only while they can be seen.
// No view's own drawing belongs here. Text of models and data goes in as text, never as markup.
const TAKES_KEYS = ["button", "select", "input", "textarea", "summary"];
function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  // JupyterLab takes keys for itself (an arrow folds a heading, D twice deletes a cell) unless what has the focus says not to
  if (TAKES_KEYS.includes(tag) || "tabindex" in options) node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function frame(el, name, label) {
  el.classList.add("wb-view", name);
  el.setAttribute("role", "region");
  el.setAttribute("aria-label", label);
}
function svg(tag, options = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(options)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const number = (x) => (x === null || x === undefined ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(3));
const counted = (n) => n.toLocaleString("en");
const ink = (el, name) => getComputedStyle(el).getPropertyValue(`--wb-${name}`).trim(); // a colour of the theme, for canvas

function saveFile(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
function csvLine(cells) {
  // a cell that a spreadsheet would run as a formula is written as text
  const quote = (x) => `"${(typeof x === "string" && /^[=+\-@\t\r]/.test(x) ? `'${x}` : String(x ?? "")).replaceAll('"', '""')}"`;
  return `${cells.map(quote).join(",")}\r\n`;
}

// A listbox of any length. `draw(k)` returns the children of row k, or [children, class]; `choose(k)` is told of a click or key.
function rowList({ label, height, draw, choose }) {
  const id = `wb${Math.random().toString(36).slice(2, 10)}`;
  const spacer = make("div", { class: "spacer" });
  const el = make("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": label }, spacer);
  let count = 0, chosen = -1;
  function refresh() {
    spacer.replaceChildren();
    const first = Math.max(0, Math.floor(el.scrollTop / height) - 5);
    const last = Math.min(count, Math.ceil((el.scrollTop + (el.clientHeight || 600)) / height) + 5);
    for (let k = first; k < last; k += 1) {
      const drawn = draw(k), [children, kind] = Array.isArray(drawn[0]) ? drawn : [drawn, ""];
      spacer.append(make("div", {
        class: `row ${kind}`.trim(), role: "option", id: `${id}-${k}`, "aria-selected": String(k === chosen), "aria-posinset": k + 1,
        "aria-setsize": count, style: `top:${height * k}px;height:${height}px`, onclick: () => choose(k),
      }, ...children));
    }
    if (chosen >= first && chosen < last) el.setAttribute("aria-activedescendant", `${id}-${chosen}`);
    else el.removeAttribute("aria-activedescendant");
  }
  function mark(k) {
    chosen = k;
    if (k >= 0) {
      if (height * k < el.scrollTop) el.scrollTop = height * k;
      if (height * (k + 1) > el.scrollTop + el.clientHeight) el.scrollTop = height * (k + 1) - el.clientHeight;
    }
    refresh();
  }
  function show(n, at = -1) {
    count = n;
    chosen = at;
    spacer.style.height = `${height * n}px`;
    refresh();
  }
  el.addEventListener("scroll", () => requestAnimationFrame(refresh));
  el.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(el.clientHeight / height) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -count, End: count }[event.key];
    if (step === undefined || !count) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(count - 1, (chosen < 0 ? (step > 0 ? -1 : 0) : chosen) + step)));
  });
  return { el, refresh, show, mark, chosen: () => chosen, window: () => [Math.max(0, Math.floor(el.scrollTop / height) - 5), Math.ceil((el.scrollTop + (el.clientHeight || 600)) / height) + 5] };
}
