// The button that turns a page dark or light. It lives in shell.html.j2, as does `theme`.
const themeSwitch = byId("theme-switch");
const redrawn = []; // what to draw anew in other colours
const isDark = () => document.documentElement.dataset.theme === "dark";
function themed() {
  themeSwitch.textContent = isDark() ? "light" : "dark";
  themeSwitch.setAttribute("aria-label", `show this page in ${isDark() ? "light" : "dark"} colours`);
  for (const draw of redrawn) draw();
}
themeSwitch.addEventListener("click", () => { theme.keep(!isDark()); themed(); });
themed();
// a Jupyter server shuts up the files that it shows in a sandbox: a link from one to another ends in "403: Forbidden"
if (window.origin === "null" && location.protocol !== "file:") {
  for (const link of document.querySelectorAll("a[href]:not([href^='#'])")) {
    if (link.host === location.host) { link.removeAttribute("href"); link.title = "workbench serve-pages shows pages with their links"; }
  }
}
