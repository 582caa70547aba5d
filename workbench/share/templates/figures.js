// Plotly figures of a page, in the page's colours and at its width. Their text is drawn by plotly, which reads a few
// tags (bold, line breaks, links) and no other markup.
const NARROW = 600; // pixels of a figure, below which its legend goes under it and its title takes several lines

const pageColour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// what is drawn in black or dark grey, in a colour that is seen on a dark page; text in data is no colour and stays
function onDark(part, ink, key = "") {
  if (Array.isArray(part)) return key === "shapes" || key === "annotations" || key === "data" ? part.map(item => onDark(item, ink)) : part;
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([name, value]) => [name, onDark(value, ink, name)]));
  if (typeof part !== "string" || !/color$/.test(key)) return part;
  const grey = /^#([0-9a-f]{3}|[0-9a-f]{6})$/i.test(part) ? part.slice(1).replace(/^(.)(.)(.)$/, "$1$1$2$2$3$3").match(/../g).map(hex => parseInt(hex, 16)) : part === "black" ? [0, 0, 0] : [255];
  return Math.max(...grey) < 0x78 && Math.max(...grey) - Math.min(...grey) < 24 ? ink : part;
}
// the figures' own template is light; on a dark page its paper, ink and rules are the page's
function inColours(layout) {
  if (!isDark()) return layout;
  const ink = pageColour("--ink"), line = pageColour("--line");
  const given = layout.template || {}, base = given.layout || {}, clear = "rgba(0,0,0,0)";
  const axis = old => ({...old, gridcolor: line, linecolor: ink, zerolinecolor: line});
  const dark = {...base, paper_bgcolor: clear, plot_bgcolor: clear, font: {...base.font, color: ink}, legend: {...base.legend, bgcolor: clear},
    xaxis: axis(base.xaxis), yaxis: axis(base.yaxis)};
  return {...onDark({...layout, template: undefined}, ink), template: {...given, layout: dark}};
}

// lines of about `length` characters; a text with markup stays as it is
function inLines(text, length) {
  if (typeof text !== "string" || text.includes("<")) return text;
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last && last.length + word.length >= length) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines.join("<br>");
}

// a figure of a fixed size that is wider than the page would be cut off
function fitted(layout, width) {
  const fits = {...layout};
  if (fits.width > width) delete fits.width;
  if (width >= NARROW) return fits;
  const axes = Object.keys(fits).filter(name => /^xaxis\d*$/.test(name)).map(name => fits[name].domain?.[0] ?? 0);
  const panels = new Set(axes).size;
  const pushed = {dragmode: false}; // a finger on a figure moves the page
  if (panels > 1) return {...fits, ...pushed, width: Math.max(width, Math.min(60 + 310 * panels, 1000))}; // side by side: pushed along in its box
  const title = typeof fits.title === "string" ? {text: fits.title} : {...fits.title};
  title.text = inLines(title.text, Math.floor(width / 7.6));
  title.font = {...title.font, size: 14};
  const lines = title.text ? title.text.split("<br>").length : 0;
  const margin = {...fits.template?.layout?.margin, ...fits.margin};
  for (const name of Object.keys(fits).filter(key => /^xaxis\d*$/.test(key))) {
    const said = fits[name].title;
    const text = inLines(typeof said === "string" ? said : said?.text, Math.floor(width / 9.5));
    if (text) fits[name] = {...fits[name], title: {...(typeof said === "object" && said), text}};
  }
  return {...fits, ...pushed, title, legend: {...fits.legend, orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", title: {text: ""}},
    margin: {...margin, l: Math.min(margin.l ?? 60, 48), r: 8, t: Math.max(margin.t ?? 60, 24 + 20 * lines)}, height: Math.max(fits.height || 420, 380)};
}

// what a screen reader calls the figure; the page's policy would report what a parser finds in a hostile title
const MEANT = {lt: "<", gt: ">", quot: '"', "#39": "'", "#x27": "'", amp: "&"};
function named(figure) {
  const title = figure.layout?.title?.text ?? figure.layout?.title;
  if (typeof title !== "string") return "figure";
  return title.replace(/<[^<>]*>/g, " ").replace(/&(lt|gt|quot|#39|#x27|amp);/g, (_, name) => MEANT[name]).trim() || "figure";
}

// last in the list, so that no figure can bring plotly's upload button back
const settings = {showSendToCloud: false, plotlyServerURL: ""};
for (const holder of all("div.figure")) {
  const canvas = holder.appendChild(document.createElement("div"));
  const failed = error => { canvas.textContent = "This figure could not be drawn."; console.error(error); };
  try {
    const figure = JSON.parse(holder.firstElementChild.textContent);
    // a figure of a width of its own would lose it at the next change of the window, which a telephone's bars make all the time
    const options = () => ({responsive: dressed().width === undefined, displaylogo: false, ...figure.config, ...settings, ...(width < NARROW && {displayModeBar: false})});
    let width = holder.clientWidth;
    const dressed = () => fitted(inColours(figure.layout || {}), width);
    const traces = () => isDark() ? onDark(figure.data, pageColour("--ink"), "data") : figure.data;
    const redraw = () => Plotly.react(canvas, traces(), dressed(), options()).catch(failed);
    holder.setAttribute("role", "figure");
    holder.setAttribute("aria-label", named(figure));
    Plotly.newPlot(canvas, traces(), dressed(), options()).catch(failed);
    redrawn.push(redraw);
    // a telephone that is turned
    new ResizeObserver(() => {
      const narrower = (holder.clientWidth < NARROW) !== (width < NARROW);
      width = holder.clientWidth;
      if (narrower) redraw();
    }).observe(holder);
  } catch (error) { failed(error); }
}
