// A field in which a curve is drawn: with the mouse, or with the arrow keys (left and right choose a place, up and down move it).

function render({ model, el }) {
  const W = 420, H = 180, PAD = 34, STEPS = 21;
  const canvas = document.createElement("canvas"), hint = document.createElement("div");
  [canvas.width, canvas.height, canvas.tabIndex] = [W, H, 0];
  canvas.style.cssText = `width:${W}px;height:${H}px;touch-action:none;cursor:crosshair`;
  canvas.setAttribute("role", "application");
  hint.style.fontSize = "12px";
  hint.setAttribute("aria-live", "polite");
  el.style.color = "var(--jp-ui-font-color1, currentColor)";
  el.append(canvas, hint);
  let place = 0, values = Array(STEPS).fill(null);
  const sides = () => [model.get("x"), model.get("y")];
  const at = (i) => { const [[a, b]] = sides(); return a + ((b - a) * i) / (STEPS - 1); };
  const toX = (x) => { const [[a, b]] = sides(); return PAD + ((x - a) / (b - a)) * (W - PAD - 8); };
  const toY = (y) => { const [, [a, b]] = sides(); return H - 24 - ((y - a) / (b - a)) * (H - 34); };

  function line(context, points, colour, dash, wide) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.setLineDash(dash);
    context.beginPath();
    points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](toX(x), toY(y)));
    context.stroke();
    context.setLineDash([]);
  }

  function draw() {
    const context = canvas.getContext("2d"), [[x0, x1], [y0, y1]] = sides(), ink = getComputedStyle(el).color;
    context.clearRect(0, 0, W, H);
    context.strokeStyle = context.fillStyle = ink;
    context.font = "11px sans-serif";
    context.strokeRect(PAD, 10, W - PAD - 8, H - 34);
    context.fillText(x0, PAD, H - 10);
    context.fillText(x1, W - 34, H - 10);
    context.fillText(model.get("x_name"), W / 2, H - 10);
    context.fillText(y0, 4, H - 24);
    context.fillText(y1, 4, 18);
    context.fillText(model.get("y_name"), PAD + 6, 22);
    const locked = model.get("locked");
    if (model.get("points").length) line(context, model.get("points"), locked ? "#8A8A8A" : "#0072B2", locked ? [5, 4] : [], 2);
    if (model.get("truth").length) line(context, model.get("truth"), "#D55E00", [], 2.5);
    if (!locked && document.activeElement === canvas) context.fillRect(toX(at(place)) - 1, 10, 2, H - 34);
    hint.textContent = locked ? "grey, dashed: yours · orange: what it was" : "draw with the mouse, or with the arrow keys";
    canvas.setAttribute("aria-label", `a curve of ${model.get("y_name")} over ${model.get("x_name")}; ${hint.textContent}`);
  }

  function put(i, y) {
    const [, [low, high]] = sides();
    values[i] = Math.max(low, Math.min(high, y));
    const known = values.map((v, k) => [at(k), v]).filter(([, v]) => v !== null);
    model.set("points", known);
    model.save_changes();
    draw();
  }
  const drag = (event) => {
    if (model.get("locked") || !(event.buttons & 1)) return;
    const box = canvas.getBoundingClientRect(), [, [y0, y1]] = sides();
    const i = Math.round(((event.clientX - box.left - PAD) / (W - PAD - 8)) * (STEPS - 1));
    if (i >= 0 && i < STEPS) put(i, y0 + ((H - 24 - (event.clientY - box.top)) / (H - 34)) * (y1 - y0));
  };
  canvas.addEventListener("pointerdown", drag);
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("keydown", (event) => {
    if (model.get("locked")) return;
    const [, [low, high]] = sides(), now = values[place] ?? values[place - 1] ?? (low + high) / 2;
    if (event.key === "ArrowLeft") place = Math.max(0, place - 1);
    else if (event.key === "ArrowRight") { place = Math.min(STEPS - 1, place + 1); if (values[place] === null) put(place, now); }
    else if (event.key === "ArrowUp") put(place, now + (high - low) / 20);
    else if (event.key === "ArrowDown") put(place, now - (high - low) / 20);
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  });
  model.on("change:points change:truth change:locked", draw);
  const themed = new MutationObserver(draw);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  requestAnimationFrame(draw);
  return () => { themed.disconnect(); model.off("change:points change:truth change:locked", draw); };
}

export default { render };
