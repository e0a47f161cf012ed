// A table of bytes as coloured cells, with borders, marks, a cursor for mouse and keyboard, and its sentence.
// All texts go in as textContent, so that a text of a data set is only ever text.

const MARGIN = 20; // room for the names of the blocks, in CSS pixels
const LONGEST = 1.6; // how much higher than wide a picture may be
// What the borders of the matrix say of a block: in words, or where these have no room, in one.
const BLOCKS = {
  "local": ["local", "local"],
  "query bank": ["memory: the query bank", "memory"],
  "passage bank": ["memory: the passage bank", "memory"],
  "hard": ["local hard negatives", "hard"],
  "hard bank": ["memory: hard negatives", "hard bank"],
};

// Tell the kernel; after it has closed the widget (its cell was run again) there is no one to tell.
function tell(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  try { model.save_changes(); } catch { /* closed */ }
}

const waiting = new Set(); // pictures that are painted with the next one, of whatever grid: a page pays for each painting
const PATIENCE = 40; // milliseconds after which they are painted alone

function flush() {
  const paints = [...waiting];
  waiting.clear();
  for (const paint of paints) paint();
}

// The handles of ipywidgets' sliders have no name, and say the number of a choice: each takes its label's, and says what is read out.
function nameSliders() {
  const set = (node, name, text) => { if (text && node.getAttribute(name) !== text) node.setAttribute(name, text); };
  for (const handle of document.querySelectorAll(".widget-slider .noUi-handle")) {
    const slider = handle.closest(".widget-slider");
    const read = (selector) => slider.querySelector(selector)?.textContent.trim();
    set(handle, "aria-label", read(".widget-label") || slider.title);
    set(handle, "aria-description", slider.title);
    set(handle, "aria-valuetext", read(".widget-readout"));
  }
}
if (!window.cclNamesSliders) { // one for the page; it looks at most four times a second
  let later = null;
  const soon = () => { later ??= setTimeout(() => { later = null; nameSliders(); }, 250); };
  window.cclNamesSliders = new MutationObserver(soon);
  window.cclNamesSliders.observe(document.body, { childList: true, subtree: true, characterData: true });
  soon();
}

const inView = new Map(); // widget's key -> its views that are in view, of all that are on the page

// Say that the page has kept up: the kernel sends no further frame before it hears this. A hidden page says nothing.
function initialize({ model }) {
  const heard = () => requestAnimationFrame(() => tell(model, { beaten: model.get("beat") }));
  const beat = () => { if (model.get("beat") % model.get("window") === 0) heard(); }; // each answer costs the kernel a message
  model.on("change:beat", beat);
  heard();
  return () => model.off("change:beat", beat);
}

function render({ model, el }) {
  const make = (tag, name) => {
    const node = document.createElement(tag);
    node.className = "ccl-" + name;
    return node;
  };
  const [title, stage, canvas, legend, bar, said, told, ranking, sentence] = [
    make("div", "title"), make("div", "stage"), make("canvas", "cells"), make("div", "legend"), make("canvas", "bar"),
    make("div", "said"), make("div", "told"), make("div", "told"), make("div", "sentence")];
  el.classList.add("ccl-grid");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture of cells; the arrow keys move, Enter picks a row");
  told.setAttribute("aria-live", "polite");
  sentence.setAttribute("role", "status");
  bar.width = 256;
  bar.height = 1;
  bar.setAttribute("aria-hidden", "true");
  stage.append(canvas);
  said.append(told, ranking);
  el.append(title, stage, legend, said, sentence);
  const image = document.createElement("canvas"); // one pixel per cell
  let pixels = null;
  let place = { x: MARGIN, y: MARGIN, w: 1, h: 1 };
  let room = [0, 0], fits = false, ink = "#888", light = true; // asked of the page when they change, not at each picture

  const seenTexts = {};
  const say = (node, name) => {
    const text = model.get(name);
    if (seenTexts[name] === text) return false;
    seenTexts[name] = text;
    node.textContent = text.replace(/\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, ""); // a terminal's commands
    return true;
  };
  function words() {
    say(told, "told");
    if (say(ranking, "ranking")) ranking.style.display = seenTexts.ranking ? "" : "none";
    if (say(title, "title") | say(sentence, "sentence")) canvas.setAttribute("aria-label", title.textContent + ". " + sentence.textContent);
  }

  function paintLegend() {
    const names = model.get("legend"), colours = palette();
    legend.replaceChildren();
    if (!names.length) return;
    const context = bar.getContext("2d"), line = context.createImageData(256, 1);
    new Uint32Array(line.data.buffer).set(colours);
    new Uint32Array(line.data.buffer)[0] = colours[1];
    context.putImageData(line, 0, 0);
    const ends = names.map((name) => { const s = document.createElement("span"); s.textContent = name; return s; });
    legend.append(ends[0], bar, ...ends.slice(1));
  }

  const palette = () => {
    const bytes = model.get("colours");
    return new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + 1024));
  };

  // The picture's width and height without its margins: as wide as there is room, in a lab as high as there is, too.
  function size(rows, columns) {
    const most = fits ? room[0] : Math.min(model.get("width"), room[0] || model.get("width"));
    let w = Math.max(100, most - MARGIN - 2);
    let h = rows && columns ? Math.min(LONGEST * w, Math.max(64, (w * rows) / columns)) : 64;
    const highest = Math.max(64, room[1] - MARGIN - 2);
    if (fits && h > highest) [w, h] = [rows ? Math.max(Math.min(w, 64), (highest * w) / h) : w, highest];
    else if (fits && model.get("patient")) h = Math.min(highest, LONGEST * w, Math.max(h, 26 * rows)); // a bank's cells may be higher than wide
    return [w, h];
  }

  function draw() {
    const rows = model.get("rows"), columns = model.get("columns");
    const [w, h] = size(rows, columns), width = w + MARGIN + 2;
    const sharp = window.devicePixelRatio || 1;
    const across = Math.round(width * sharp), down = Math.round((h + MARGIN + 2) * sharp);
    if (canvas.width !== across || canvas.height !== down) {
      [canvas.width, canvas.height] = [across, down];
      canvas.style.width = width + "px";
      canvas.style.height = h + MARGIN + 2 + "px";
    }
    const context = canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, width, h + MARGIN + 2);
    context.fillStyle = context.strokeStyle = ink;
    context.font = `${fits ? 15 : 13}px sans-serif`;
    if (!rows || !columns) {
      context.setLineDash([4, 4]);
      context.strokeRect(MARGIN, MARGIN, w, h);
      context.setLineDash([]);
      const lines = [""];
      for (const word of model.get("empty").split(" ")) {
        const longer = `${lines[lines.length - 1]} ${word}`.trim();
        if (context.measureText(longer).width <= w - 16) lines[lines.length - 1] = longer;
        else lines.push(word);
      }
      const top = MARGIN + h / 2 + 4 - 9 * (lines.length - 1);
      lines.forEach((line, number) => context.fillText(line, MARGIN + 8, top + 18 * number, w - 16));
      canvas.dataset.frame = model.get("frame");
      return;
    }
    place = { x: MARGIN, y: MARGIN, w: w / columns, h: h / rows };
    const bytes = model.get("cells"), cells = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const scale = model.get("scale"), [wide, high] = [Math.ceil(columns / scale), Math.ceil(rows / scale)];
    if (!pixels || image.width !== wide || image.height !== high) {
      [image.width, image.height] = [wide, high];
      pixels = new ImageData(wide, high);
    }
    const out = new Uint32Array(pixels.data.buffer), colours = palette();
    for (let i = 0; i < cells.length; i++) out[i] = colours[cells[i]];
    image.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = place.w * scale * sharp < 1;
    context.drawImage(image, 0, 0, columns / scale, rows / scale, MARGIN, MARGIN, w, h);
    lines(context, w, h);
    marks(context);
    canvas.dataset.frame = model.get("frame");
  }

  function border(context, side, at, w, h) {
    context.beginPath();
    if (side === "column") { context.moveTo(at, MARGIN - 5); context.lineTo(at, MARGIN + h); }
    else { context.moveTo(MARGIN - 5, at); context.lineTo(MARGIN + w, at); }
    context.lineWidth = 3.5; context.strokeStyle = "rgba(255,255,255,.75)"; context.stroke();
    context.lineWidth = 1.5; context.strokeStyle = "#000"; context.stroke();
  }

  // A block's name in the margin; where the next one may begin. The first block may be too narrow for its name, as 8 local
  // rows beside 128 of a bank are: its name then reaches over the next one, whose own begins later.
  function label(context, name, side, from, to, most) {
    const wide = (text) => context.measureText(text).width;
    const texts = BLOCKS[name] ?? [name, name];
    const text = texts.find((text) => from + wide(text) <= to) ?? (from === 3 ? texts[1] : "");
    if (!text || from + wide(text) > most) return from;
    context.save();
    if (text !== name || name === "local") context.fillStyle = name === "local" ? (light ? "#00588A" : "#6CB8EA") : (light ? "#8A3D6B" : "#E59CC6");
    if (side === "row") { context.translate(MARGIN - 6, MARGIN + from + wide(text)); context.rotate(-Math.PI / 2); context.fillText(text, 0, 0); }
    else context.fillText(text, MARGIN + from, MARGIN - 6);
    context.restore();
    return from + wide(text) + 8;
  }

  // Borders between blocks, their names where they fit, and the diagonal of the positives.
  function lines(context, w, h) {
    if (Math.min(place.w, place.h) >= 6) { // a hair between cells that are large enough
      context.lineWidth = 0.5;
      context.strokeStyle = "rgba(255,255,255,.6)";
      context.beginPath();
      for (let i = 1; i < model.get("columns"); i++) { context.moveTo(MARGIN + i * place.w, MARGIN); context.lineTo(MARGIN + i * place.w, MARGIN + h); }
      for (let i = 1; i < model.get("rows"); i++) { context.moveTo(MARGIN, MARGIN + i * place.h); context.lineTo(MARGIN + w, MARGIN + i * place.h); }
      context.stroke();
      context.strokeStyle = ink;
    }
    context.lineWidth = 1;
    context.strokeRect(MARGIN, MARGIN, w, h);
    context.lineWidth = 1.5;
    const ends = { row: 0, column: 0 }; // where the next name may begin
    for (const [name, start, end, side] of model.get("blocks")) {
      const cell = side === "column" ? place.w : place.h, from = start * cell, to = end * cell;
      if (start > 0) border(context, side, MARGIN + from, w, h);
      ends[side] = label(context, name, side, Math.max(from + 3, ends[side]), to, side === "column" ? w : h);
    }
    context.strokeStyle = context.fillStyle = ink;
    const diagonal = model.get("diagonal");
    if (diagonal && Math.min(place.w, place.h) >= 5) {
      for (let i = 0; i < diagonal; i++) {
        context.strokeStyle = "rgba(255,255,255,.9)";
        context.strokeRect(MARGIN + i * place.w + 1, MARGIN + i * place.h + 1, place.w - 2, place.h - 2);
        context.strokeStyle = "#000";
        context.strokeRect(MARGIN + i * place.w + 0.5, MARGIN + i * place.h + 0.5, place.w - 1, place.h - 1);
      }
    } else if (diagonal) {
      for (const aside of [-1, 1]) { // a thin line on either side, so that the positives themselves stay to be seen
        context.beginPath();
        context.lineWidth = 0.75;
        context.strokeStyle = "rgba(0,0,0,.55)";
        context.moveTo(MARGIN + (aside > 0 ? 1.5 * place.w : 0), MARGIN + (aside < 0 ? 1.5 * place.h : 0));
        context.lineTo(MARGIN + (diagonal + (aside > 0 ? 0.5 : -0.5)) * place.w, MARGIN + (diagonal + (aside < 0 ? 0.5 : -0.5)) * place.h);
        context.stroke();
      }
    }
  }

  // The next slot, the picked row, and the cursor.
  function marks(context) {
    const box = (row, column, rows, columns, colour, wide) => {
      context.lineWidth = wide + 2; context.strokeStyle = "#fff";
      const at = [MARGIN + column * place.w, MARGIN + row * place.h, columns * place.w, rows * place.h];
      context.strokeRect(...at);
      context.lineWidth = wide; context.strokeStyle = colour;
      context.strokeRect(...at);
    };
    for (const [row, column] of model.get("marks")) box(row, column, 1, 1, "#D55E00", 2.5);
    const picked = model.get("picked"), at = model.get("at");
    if (picked.length) { // above and below the row, which stays to be seen
      context.fillStyle = "#CC79A7";
      context.fillRect(0, MARGIN + (picked[0] + 0.5) * place.h - 3, 12, 6);
      for (const edge of [picked[0], picked[0] + 1]) context.fillRect(MARGIN, MARGIN + edge * place.h - 0.5, model.get("columns") * place.w, 1);
    }
    if (at.length) box(at[0], at[1], 1, 1, "#000", 2);
  }

  const paint = () => { words(); draw(); };
  const redraw = () => { // several changes in one turn are one picture
    waiting.add(paint);
    requestAnimationFrame(flush);
  };
  const frame = () => {
    if (!model.get("patient")) return redraw();
    waiting.add(paint);
    setTimeout(() => { if (waiting.has(paint)) requestAnimationFrame(flush); }, PATIENCE);
  };

  function point(row, column) {
    const rows = model.get("rows"), columns = model.get("columns");
    if (!rows || !columns) return;
    const at = [Math.max(0, Math.min(rows - 1, row)), Math.max(0, Math.min(columns - 1, column))];
    if (String(at) === String(model.get("at"))) return;
    tell(model, { at });
  }
  const pick = (row) => tell(model, { picked: String(model.get("picked")) === String([row]) ? [] : [row] });
  const pointing = () => el.classList.toggle("ccl-pointing", canvas.matches(":hover, :focus-visible"));
  for (const event of ["mouseenter", "mouseleave", "focus", "blur"]) canvas.addEventListener(event, pointing);
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - place.x) / place.w), row = Math.floor((event.clientY - box.top - place.y) / place.h);
    if (row >= 0 && column >= 0 && row < model.get("rows") && column < model.get("columns")) point(row, column);
  });
  canvas.addEventListener("click", () => { if (model.get("at").length && model.get("talks") === "rows") pick(model.get("at")[0]); });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    pointing();
    const at = model.get("at").length ? model.get("at") : [0, -1];
    if (event.key in moves) point(at[0] + moves[event.key][0], at[1] + moves[event.key][1]);
    else if (event.key === "Home") point(at[0], 0);
    else if (event.key === "End") point(at[0], model.get("columns") - 1);
    else if (event.key === "Enter" && at[1] >= 0 && model.get("talks") === "rows") pick(at[0]);
    else if (event.key === "Escape") tell(model, { at: [], picked: [] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const all = "change:at change:picked change:told change:ranking change:sentence change:title";
  model.on(all, redraw);
  model.on("change:frame", frame);
  model.on("change:legend change:colours", paintLegend);
  const resized = new ResizeObserver(() => {
    fits = Boolean(el.closest(".ccl-views"));
    const now = fits ? [stage.clientWidth, stage.clientHeight] : [el.clientWidth, 0];
    if (String(now) !== String(room)) { room = now; theme(); }
  });
  resized.observe(el);
  resized.observe(stage);
  const theme = () => {
    if (!el.isConnected) return; // on a page that is loaded again, it comes later
    ink = getComputedStyle(el).color;
    light = ink.match(/[\d.]+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0) < 384;
    redraw();
  };
  const themed = new MutationObserver(theme);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  // Only what is in view is worth a frame. Several views of one model may be on the page.
  const key = model.get("key");
  if (!inView.has(key)) inView.set(key, new Set());
  const views = inView.get(key);
  const seen = new IntersectionObserver(([entry]) => {
    views[entry.isIntersecting ? "add" : "delete"](el);
    tell(model, { shown: views.size > 0 });
  });
  seen.observe(el);
  paintLegend();
  requestAnimationFrame(theme);
  return () => {
    model.off(all, redraw);
    model.off("change:legend change:colours", paintLegend);
    model.off("change:frame", frame);
    [resized, themed, seen].forEach((observer) => observer.disconnect());
    views.delete(el);
  };
}

export default { initialize, render };
