// Views and code of a run's page; `views` holds the drawing routines that it needs.
for (const holder of all("div.view")) {
  try {
    const {view, state} = JSON.parse(holder.firstElementChild.textContent);
    // what anywidget gives in a notebook, without a kernel behind it
    const model = {get: name => state[name], set: (name, value) => { state[name] = value; }, save_changes() {}, on() {}, send() {}};
    views[view]({model, el: holder.appendChild(document.createElement("div"))});
  } catch (error) { holder.append("This view could not be drawn."); console.error(error); }
}
// what runs off to the side can be reached by keys
for (const box of all(".output, .wide, .html, pre, .prose :is(p, li), math[display=block]")) {
  if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX === "auto" && !box.querySelector("a, button, input, select, [tabindex]")) {
    box.setAttribute("tabindex", "0");
    if (box.tagName === "DIV") { box.setAttribute("role", "region"); box.setAttribute("aria-label", "scrolls sideways"); }
  }
}
const codeSwitch = byId("code-switch");
codeSwitch.addEventListener("click", () => {
  const open = codeSwitch.textContent === "show all code";
  for (const block of all("details.source")) block.open = open;
  codeSwitch.textContent = open ? "hide all code" : "show all code";
});
