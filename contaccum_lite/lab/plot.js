// Lines in panels as SVG: grid, numbers, a legend, and under the pointer the values.
// All names go in as textContent, so that a name is only ever text.

const NS = "http://www.w3.org/2000/svg";
const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "12 4" };
const ROOM = { right: 8, top: 6, bottom: 20 }; // beside the picture, below it for the numbers, in CSS pixels

function svg(tag, attributes, text) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function html(tag, name, text) {
  const node = document.createElement(tag);
  node.className = "ccl-" + name;
  if (text !== undefined) node.textContent = text;
  return node;
}
const doubles = (view) => new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const short = (value) => (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e5) ? value.toExponential(0) : String(Number(value.toPrecision(6))));
const read = (value) => (Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3));

// Round numbers from low to high, about `most` of them.
function evenTicks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) ticks.push(n * step);
  return ticks;
}
// 1, 2 and 5 times each power of ten, or over many powers only some of these; within less than that, even ones.
function logTicks(low, high, most) {
  for (const digits of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of digits) { const tick = digit * 10 ** power; if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick); }
    if (digits.length === 3 && ticks.length < 2) return evenTicks(low, high, most);
    if (ticks.length <= most) return ticks;
    if (digits.length === 1) return ticks.filter((_, n) => n % Math.ceil(ticks.length / most) === 0);
  }
}

// The range of a panel's lines, and where a point of them lies.
function scales(lines, log, width, height, room) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const { x, y } of lines)
    for (let i = 0; i < x.length; i++) {
      if (!Number.isFinite(y[i]) || (log && y[i] <= 0)) continue;
      left = Math.min(left, x[i]); right = Math.max(right, x[i]);
      low = Math.min(low, y[i]); high = Math.max(high, y[i]);
    }
  const empty = left > right;
  if (empty) [left, right, low, high] = [0, 1, log ? 0.5 : 0, log ? 2 : 1];
  [left, right] = [Math.min(0, left), Math.max(1, right)];
  if (log) {
    if (high < 1.3 * low) [low, high] = [low / 1.3, high * 1.3];
    [low, high] = [low / 1.08, high * 1.08];
  } else [low, high] = [Math.min(0, low), high > 0 ? high * 1.06 : 1];
  const [w, h] = [width - room - ROOM.right, height - ROOM.top - ROOM.bottom];
  const up = log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
  return { left, right, low, high, empty, w, h, room, x: (v) => room + ((v - left) / (right - left)) * w, y: (v) => ROOM.top + h - up(v) * h };
}

function pathOf(line, scale, log) {
  let path = "", broken = true;
  for (let i = 0; i < line.x.length; i++) {
    if (!Number.isFinite(line.y[i]) || (log && line.y[i] <= 0)) { broken = true; continue; }
    path += `${broken ? "M" : "L"}${scale.x(line.x[i]).toFixed(1)},${scale.y(line.y[i]).toFixed(1)}`;
    broken = false;
  }
  return path;
}

function render({ model, el }) {
  el.classList.add("ccl-plot");
  const panels = model.get("panels").map(([key, title, log, unit]) => {
    const box = html("div", "panel"), caption = html("div", "caption"), picture = svg("svg", { role: "img" });
    const words = html("span", "caption-title", title), values = html("span", "caption-values");
    values.setAttribute("aria-hidden", "true");
    caption.append(words, values);
    picture.setAttribute("aria-label", title);
    box.append(caption, picture);
    box.dataset.panel = key;
    const panel = { key, title, log, unit, box, picture, words, values, lines: [], scale: null };
    picture.addEventListener("pointermove", (event) => point(panel, event));
    picture.addEventListener("pointerleave", () => point(panel, null));
    return panel;
  });
  const legend = html("div", "lines");
  el.append(...panels.map((panel) => panel.box), legend);

  function ticksOf(panel, { low, high, h }) {
    const most = Math.max(2, Math.floor(h / 26));
    return panel.log ? logTicks(low, high, most) : evenTicks(low, high, most);
  }

  function axes(panel, scale, width, height) {
    const nodes = [];
    const band = model.get("band");
    if (band.length && band[0] === panel.key) {
      const [top, bottom] = [band[2], band[1]].map((v) => Math.max(ROOM.top, Math.min(ROOM.top + scale.h, scale.y(v))));
      nodes.push(svg("rect", { class: "ccl-band", x: scale.room, y: top, width: scale.w, height: Math.max(0, bottom - top) }));
    }
    for (const tick of ticksOf(panel, scale)) {
      const y = scale.y(tick).toFixed(1);
      nodes.push(svg("line", { class: "ccl-rule", x1: scale.room, x2: width - ROOM.right, y1: y, y2: y }));
      nodes.push(svg("text", { class: "ccl-y", x: scale.room - 5, y: Number(y) + 4, "text-anchor": "end" }, short(tick)));
    }
    if (!scale.empty) {
      const ticks = evenTicks(scale.left, scale.right, Math.max(2, Math.floor(scale.w / 60))).filter(Number.isInteger);
      let room = Infinity; // left of the last number, which the axis' name precedes: "update 100"
      for (const tick of ticks.reverse()) {
        const text = room === Infinity ? `${panel.unit} ${short(tick)}` : short(tick), half = 3.8 * text.length;
        const right = Math.min(width - 2, scale.x(tick) + half);
        if (right > room) continue;
        nodes.push(svg("text", { class: "ccl-x", x: right, y: height - 5, "text-anchor": "end" }, text));
        room = right - 2 * half - 4;
      }
    }
    return nodes;
  }

  function paint(panel) {
    const width = panel.picture.clientWidth, height = panel.picture.clientHeight;
    if (width < 60 || height < 40) return;
    const digits = Math.max(1, ...ticksOf(panel, scales(panel.lines, panel.log, width, height, 0)).map((tick) => short(tick).length));
    const scale = (panel.scale = scales(panel.lines, panel.log, width, height, 10 + 7.7 * digits)); // room for the longest number
    const nodes = axes(panel, scale, width, height);
    for (const line of panel.lines) {
      const style = { stroke: line.color, "stroke-width": line.width, "stroke-dasharray": DASHES[line.dash], opacity: line.ghost ? 0.55 : 1 };
      nodes.push(svg("path", { class: "ccl-line", d: pathOf(line, scale, panel.log), ...style }));
      if (!line.markers) continue;
      for (let i = 0; i < line.x.length; i++)
        if (Number.isFinite(line.y[i])) nodes.push(svg("circle", { cx: scale.x(line.x[i]), cy: scale.y(line.y[i]), r: 2.5, fill: line.color }));
    }
    panel.cursor = svg("line", { class: "ccl-cursor", y1: ROOM.top, y2: ROOM.top + scale.h, visibility: "hidden" });
    panel.picture.replaceChildren(...nodes, panel.cursor);
  }

  // The values of a panel's lines at the update next to the pointer, in place of its title.
  function point(panel, event) {
    const { scale, lines } = panel;
    const seen = event && scale && !scale.empty;
    panel.box.classList.toggle("ccl-pointed", Boolean(seen));
    panel.cursor?.setAttribute("visibility", seen ? "visible" : "hidden");
    if (!seen) return;
    const wanted = scale.left + ((event.offsetX - scale.room) / scale.w) * (scale.right - scale.left);
    const nearest = (line) => line.x.reduce((best, x, i) => (Math.abs(x - wanted) < Math.abs(line.x[best] - wanted) ? i : best), 0);
    const own = lines.filter((line) => line.x.length && !line.ghost);
    if (!own.length) return;
    const at = own[0].x[nearest(own[0])];
    panel.cursor.setAttribute("x1", scale.x(at));
    panel.cursor.setAttribute("x2", scale.x(at));
    panel.values.textContent = `${panel.unit} ${at}: ${own.map((line) => read(line.y[nearest(line)])).join(" · ")}`;
  }

  function paintLegend(lines) {
    const named = lines.filter((line) => line.legend);
    const rows = [...named.filter((line) => !line.ghost), ...named.filter((line) => line.ghost).reverse()].map((line) => {
      const row = html("div", "entry"), mark = svg("svg", { width: 30, height: 10, "aria-hidden": "true" });
      mark.append(svg("line", { x1: 0, x2: 30, y1: 5, y2: 5, stroke: line.color, "stroke-width": Math.max(2, line.width), "stroke-dasharray": DASHES[line.dash], opacity: line.ghost ? 0.55 : 1 }));
      row.append(mark, html("span", "entry-name", line.name));
      return row;
    });
    legend.replaceChildren(...rows);
  }

  function draw() {
    const lines = model.get("lines").map((line) => ({ ...line, x: doubles(line.x), y: doubles(line.y) }));
    for (const panel of panels) {
      panel.box.style.display = model.get("hidden").includes(panel.key) ? "none" : "";
      panel.lines = lines.filter((line) => line.panel === panel.key && line.x.length);
      paint(panel);
    }
    paintLegend(lines);
    if (model.get("drawn") === model.get("frame")) return;
    model.set("drawn", model.get("frame"));
    try { model.save_changes(); } catch { /* closed */ }
  }

  let due = false;
  const soon = () => { if (due) return; due = true; requestAnimationFrame(() => { due = false; draw(); }); };
  model.on("change:frame", soon);
  const resized = new ResizeObserver(soon);
  resized.observe(el);
  soon();
  return () => { model.off("change:frame", soon); resized.disconnect(); };
}

export default { render };
