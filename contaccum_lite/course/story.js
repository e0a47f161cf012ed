// The animated matrix: vectors as chips along two sides, entries as cells between them. A moment is a list of rows and of columns,
// each [pair, slot, fresh, scored]; between two moments, what both have moves, what is new comes in, what is gone fades.

const CELL = 46, LEFT = 64, TOP = 58, GAP = 10, SECONDS = 1.5; // CSS pixels; seconds from one moment to the next

const mix = (a, b, t) => a + (b - a) * t;
const ease = (t) => (t < 0.5 ? 4 * t * t * t : 1 - Math.pow(-2 * t + 2, 3) / 2);
const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const blend = (colours, weights) => [0, 1, 2].map((i) => Math.round(colours.reduce((sum, c, k) => sum + c[i] * weights[k], 0)));

function render({ model, el }) {
  const make = (tag, name, text = "") => {
    const node = document.createElement(tag);
    node.className = "ccl-story-" + name;
    node.textContent = text;
    return node;
  };
  const local = model.get("local"), memory = model.get("memory"), hasRows = model.get("query_bank");
  const moments = model.get("moments"), last = moments.length - 1;
  const across = local + memory, down = hasRows ? across : local;
  const width = LEFT + across * CELL + GAP + 8, height = TOP + down * CELL + (hasRows ? GAP : 0) + 8;
  const [title, canvas, key, bar, sentence] = [
    make("div", "title"), make("canvas", "canvas"), make("div", "key"), make("div", "bar"), make("div", "sentence")];
  const [play, back, next, slider] = [make("button", "play"), make("button", "step", "◀"), make("button", "step", "▶"), make("input", "at")];
  back.title = "one moment back"; next.title = "one moment on";
  for (const button of [back, next]) button.setAttribute("aria-label", button.title);
  Object.assign(slider, { type: "range", min: 0, max: last, step: 0.01 });
  slider.setAttribute("aria-label", "moment of the story");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-roledescription", "animation; the arrow keys step, the space bar plays");
  sentence.setAttribute("role", "status");
  for (const [, colour, words] of model.get("colours")) {
    const entry = document.createElement("span"), patch = document.createElement("i");
    patch.style.background = colour;
    entry.append(patch, words);
    key.append(entry);
  }
  bar.append(play, back, next, slider);
  el.classList.add("ccl-story");
  el.append(title, canvas, key, bar, sentence);
  const palette = Object.fromEntries(model.get("colours").map(([name, colour]) => [name, parts(colour)]));

  let at = model.get("at"), playing = false, before = 0, spoken = -1, ink = "#888", frame = 0;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // Where a slot begins, on either side: a gap lies between the local ones and the bank.
  const place = (slot) => slot * CELL + GAP * Math.min(1, Math.max(0, slot - local + 1));

  // The vectors of one side at this time: [pair, position, freshness, visibility, how far its entries are there].
  function vectors(side) {
    const first = Math.min(last, Math.floor(at)), t = ease(at - first);
    const now = moments[first][side], then = moments[Math.min(last, first + 1)][side];
    const byPair = new Map(then.map((v) => [v[0], v]));
    const shown = now.map(([pair, slot, fresh, scored]) => {
      const after = byPair.get(pair);
      byPair.delete(pair);
      if (!after) return [pair, place(slot), fresh ? 1 : 0, 1 - t, scored ? 1 : 0]; // overwritten
      return [pair, mix(place(slot), place(after[1]), t), mix(+fresh, +after[2], t), 1, mix(+scored, +after[3], t)];
    });
    for (const [pair, slot, fresh, scored] of byPair.values()) shown.push([pair, place(slot) - (1 - t) * 26, +fresh, t, scored ? t : 0]);
    return shown.sort((a, b) => a[2] - b[2]); // what is fresh is drawn over what is frozen
  }

  function chip(context, x, y, name, fresh, alpha, glow) {
    const colour = blend([palette.both, palette.none], [fresh, 1 - fresh]);
    context.globalAlpha = alpha;
    if (glow > 0) {
      context.beginPath();
      context.roundRect(x - 3 - 3 * glow, y - 3 - 3 * glow, 40 + 6 + 6 * glow - 6, 26 + 6 * glow, 9);
      context.strokeStyle = `rgba(213,94,0,${glow})`;
      context.lineWidth = 2.5;
      context.stroke();
    }
    context.beginPath();
    context.roundRect(x, y, 34, 20, 6);
    context.fillStyle = `rgb(${colour})`;
    context.fill();
    context.lineWidth = 1;
    context.strokeStyle = "#8888";
    context.stroke();
    context.fillStyle = fresh > 0.5 ? "#fff" : "#222";
    context.font = "600 12px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(name, x + 17, y + 10.5);
    context.globalAlpha = 1;
  }

  // Where the two blocks of a side are, dashed, with their names.
  function frames(context) {
    context.strokeStyle = context.fillStyle = ink;
    context.font = "12px sans-serif";
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    const far = LEFT + place(local), under = TOP + place(local);
    context.fillText("local passages", LEFT, 14, local * CELL + GAP - 4);
    context.fillText("passage bank", far, 14);
    context.save();
    context.translate(13, TOP + local * CELL);
    context.rotate(-Math.PI / 2);
    context.fillText("local queries", 0, 0, local * CELL);
    context.restore();
    if (hasRows) {
      context.save();
      context.translate(13, under + memory * CELL);
      context.rotate(-Math.PI / 2);
      context.fillText("query bank", 0, 0);
      context.restore();
    }
    context.globalAlpha = 0.45;
    context.setLineDash([3, 4]);
    context.lineWidth = 1;
    const sides = [[0, local], [local, memory]];
    for (const [x, w] of sides) for (const [y, h] of hasRows ? sides : sides.slice(0, 1))
      context.strokeRect(LEFT + place(x) + 0.5, TOP + place(y) + 0.5, w * CELL - 1, h * CELL - 1);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  // How strongly the gradient is seen to flow: it rises and falls about the moment that learns.
  function flow() {
    const near = moments.findIndex((m, i) => m.phase === "learns" && Math.abs(i - at) < 1);
    return near < 0 ? 0 : Math.cos((near - at) * Math.PI / 2) ** 2;
  }

  function draw() {
    const sharp = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * sharp)) {
      [canvas.width, canvas.height] = [Math.round(width * sharp), Math.round(height * sharp)];
      canvas.style.width = width + "px";
      canvas.style.maxWidth = "100%";
    }
    const context = canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, width, height);
    frames(context);
    const rows = vectors("rows"), columns = vectors("columns"), glow = flow();
    for (const [query, y, freshQ, seenQ, scoredQ] of rows) for (const [passage, x, freshP, seenP, scoredP] of columns) {
      const alpha = seenQ * seenP * scoredQ * scoredP;
      if (alpha <= 0.01) continue;
      const weights = [freshQ * freshP, freshQ * (1 - freshP), (1 - freshQ) * freshP, (1 - freshQ) * (1 - freshP)];
      const colour = blend([palette.both, palette.query, palette.passage, palette.none], weights);
      const grow = mix(0.55, 1, alpha), inset = (CELL * (1 - grow)) / 2 + 1.5;
      context.globalAlpha = alpha * (1 - 0.55 * glow * weights[3]);
      context.beginPath();
      context.roundRect(LEFT + x + inset, TOP + y + inset, CELL - 2 * inset, CELL - 2 * inset, 4);
      context.fillStyle = `rgb(${colour})`;
      context.fill();
      if (query === passage) {
        context.fillStyle = weights[0] > 0.5 ? "#fff" : "#222";
        context.font = "600 17px sans-serif";
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.fillText("+", LEFT + x + CELL / 2, TOP + y + CELL / 2 + 1);
      }
      context.globalAlpha = 1;
    }
    for (const [pair, x, fresh, seen] of columns) chip(context, LEFT + x + 6, TOP - 30, "p" + pair, fresh, seen, fresh * glow);
    for (const [pair, y, fresh, seen] of rows) chip(context, LEFT - 42, TOP + y + 13, "q" + pair, fresh, seen, fresh * glow);
    canvas.dataset.at = at.toFixed(2);
  }

  function words() {
    const number = Math.round(at);
    slider.value = at;
    slider.setAttribute("aria-valuetext", moments[number].title);
    play.textContent = playing ? "⏸ Pause" : at >= last ? "↺ Again" : "▶ Play";
    if (number === spoken) return;
    spoken = number;
    title.textContent = moments[number].title;
    sentence.textContent = moments[number].sentence;
    canvas.setAttribute("aria-label", moments[number].title + ". " + moments[number].sentence);
  }

  const paint = () => { words(); draw(); };
  function tick(time) {
    frame = 0;
    if (!playing) return;
    const passed = before ? (time - before) / 1000 : 0;
    before = time;
    at = Math.min(last, at + Math.min(passed, 0.1) / SECONDS);
    if (at >= last) playing = false;
    paint();
    if (playing) frame = requestAnimationFrame(tick);
    else settle();
  }
  const settle = () => { model.set({ at, playing }); try { model.save_changes(); } catch { /* closed */ } };
  function start() {
    if (at >= last) at = 0;
    playing = true;
    before = 0;
    paint();
    settle();
    frame ||= requestAnimationFrame(tick);
  }
  function pause() { playing = false; paint(); settle(); }
  let stop = () => {}, goal = null; // where a step is going, while it is on its way
  // Go to a moment: at once by the slider, in a third of a second by a step.
  function go(target) {
    target = Math.max(0, Math.min(last, target));
    playing = false;
    stop();
    const from = at, began = performance.now();
    let live = true;
    goal = target;
    stop = () => { live = false; goal = null; };
    const move = (time) => {
      if (!live) return;
      const t = still ? 1 : Math.min(1, Math.max(0, time - began) / 450);
      at = t >= 1 ? target : mix(from, target, t);
      paint();
      if (t < 1) return requestAnimationFrame(move);
      goal = null;
      settle();
    };
    requestAnimationFrame(move);
  }
  // A second press on the way goes on from where the first one leads.
  const step = (by) => go((goal ?? (by > 0 ? Math.floor(at + 1e-6) : Math.ceil(at - 1e-6))) + by);
  const toggle = () => { stop(); if (playing) pause(); else start(); };
  play.addEventListener("click", toggle);
  back.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  slider.addEventListener("input", () => { stop(); playing = false; at = +slider.value; paint(); });
  slider.addEventListener("change", settle);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  canvas.addEventListener("keydown", (event) => {
    const acts = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), Home: () => go(0), End: () => go(last), " ": toggle };
    if (!(event.key in acts)) return;
    acts[event.key]();
    event.preventDefault();
    event.stopPropagation();
  });
  const heard = () => {
    const [to, plays] = [model.get("at"), model.get("playing")];
    if (plays && !playing) start();
    else if (!plays && playing && to !== at) pause();
    else if (!playing && Math.abs(to - at) > 1e-6) { at = Math.max(0, Math.min(last, to)); paint(); }
  };
  model.on("change:at change:playing", heard);
  const theme = () => { ink = getComputedStyle(el).color; draw(); };
  const themed = new MutationObserver(theme);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  requestAnimationFrame(() => { theme(); words(); });
  return () => { playing = false; stop(); model.off("change:at change:playing", heard); themed.disconnect(); };
}

export default { render };
