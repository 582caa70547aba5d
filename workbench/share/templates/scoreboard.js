// Filters of the scoreboard: they hide rows, and stand in the address, so that a filtered view can be linked.
const FIELDS = ["q", "system", "scale", "verdict", "input"];
const count = byId("count");
function filters() {
  const controls = Object.fromEntries(FIELDS.map(name => [name, byId(name)]));
  const rows = [...all("main tbody tr")].map(node => ({node, ...node.dataset, claim: node.closest("table").classList.contains("claims"), text: null}));
  const total = rows.filter(row => row.claim).length;
  // what stands in a row but for the verdicts of earlier runs
  const textOf = row => row.text ??= [...node_cells(row.node)].map(cell => cell.textContent).join(" ").toLowerCase();
  const node_cells = node => [...node.cells].slice(0, 7);

  function fits(row, asked, words) {
    if (asked.system && (asked.system.endsWith("/") ? `${row.group}/` : row.system) !== asked.system) return false;
    if (asked.scale && row.scale !== asked.scale) return false;
    if (asked.verdict && row.claim && row.verdict !== asked.verdict) return false;
    if (asked.input && row.input !== asked.input) return false;
    return words.every(word => textOf(row).includes(word));
  }
  function show() {
    const asked = Object.fromEntries(FIELDS.map(name => [name, controls[name].value]));
    const words = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, anything = false;
    for (const row of rows) {
      const visible = fits(row, asked, words);
      if (row.node.hidden === visible) row.node.hidden = !visible;
      anything ||= visible;
      shown += row.claim && visible;
    }
    for (const section of all("main section")) {
      section.hidden = !section.querySelector("tbody tr:not([hidden])");
      const tally = section.querySelector(".tally");
      if (tally) tally.replaceChildren(...counted(section));
    }
    byId("nothing").hidden = anything;
    const text = `${shown} of ${total} claims`;
    if (count.textContent !== text) count.textContent = text;
  }
  function counted(section) {
    const verdicts = new Map();
    for (const row of section.querySelectorAll("tbody tr:not([hidden])")) verdicts.set(row.dataset.verdict, (verdicts.get(row.dataset.verdict) || 0) + 1);
    const order = [...controls.verdict.options].map(option => option.value);
    return [...verdicts].sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0])).map(([verdict, n]) => {
      const node = document.createElement("span"), bold = document.createElement("b");
      bold.textContent = n;
      node.append(bold, ` ${verdict}`);
      return node;
    });
  }
  function read() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const name of FIELDS) {
      controls[name].value = kept.get(name) || "";
      if (controls[name].selectedIndex === -1) controls[name].value = ""; // a link from when there was more to choose from
    }
    show();
  }
  function keep() {
    const kept = new URLSearchParams(FIELDS.map(name => [name, controls[name].value]).filter(([, value]) => value));
    show();
    history.replaceState(null, "", `#${kept}`); // last: a browser may refuse it to one who types very fast
  }
  function clear() {
    for (const name of FIELDS) controls[name].value = "";
    keep();
  }
  for (const name of FIELDS) controls[name].addEventListener("input", keep);
  byId("clear").addEventListener("click", clear);
  addEventListener("hashchange", read);
  addEventListener("keydown", event => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      controls.q.focus();
      controls.q.select();
    }
    if (event.key === "Escape") clear();
  });
  read();
}
if (count) filters();
