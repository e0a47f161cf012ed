// A lab as one screen: as high as the notebook's window, views that can be enlarged, and a tour for a first visit.

const SEEN = "contaccum_lite.tour"; // where this browser remembers that the tour was taken, or left
const LOWEST = 500, NARROW = 900; // CSS pixels: below the one a lab is scrolled, below the other its views stand in one column
const NAMES = { matrix: "the similarity matrix", banks: "the memory banks", curves: "the curves" };

function make(tag, name, text) {
  const node = document.createElement(tag);
  node.className = "ccl-" + name;
  if (text !== undefined) node.textContent = text;
  return node;
}
function button(name, text, act) {
  const node = make("button", name, text);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}
function wasSeen() { try { return localStorage.getItem(SEEN) !== null; } catch { return Boolean(window.cclTourSeen); } }
function remember() { window.cclTourSeen = true; try { localStorage.setItem(SEEN, "1"); } catch { /* this page remembers it */ } }

// The height of the window in which the notebook is scrolled. Where outputs live in a frame of their own that grows
// with them, as in Colab, it is guessed from the screen.
function screenHeight(root) {
  const panel = root.closest(".jp-WindowedPanel-outer, .jp-Notebook");
  const height = panel ? panel.clientHeight - 16 : Math.min(900, window.screen.availHeight - 300);
  return Math.max(LOWEST, height);
}

// Keep the root's height and its number of columns as the window wants them; what undoes it.
function fitScreen(root) {
  const fit = () => {
    root.style.setProperty("--ccl-screen", screenHeight(root) + "px");
    root.classList.toggle("ccl-narrow", root.clientWidth > 0 && root.clientWidth < NARROW);
    root.classList.toggle("ccl-wide", root.clientWidth > 1500);
  };
  const observer = new ResizeObserver(fit), panel = root.closest(".jp-WindowedPanel-outer, .jp-Notebook");
  observer.observe(root);
  if (panel) observer.observe(panel);
  fit();
  return () => observer.disconnect();
}

// A button on each view that gives it the room of all; Escape, or the button again, gives it back.
function enlarge(root) {
  const views = root.querySelector(".ccl-views"), buttons = new Map();
  const set = (large) => {
    views.classList.toggle("ccl-has-large", Boolean(large));
    for (const [view, [node, name]] of buttons) {
      view.classList.toggle("ccl-large", view === large);
      node.textContent = view === large ? "⤡" : "⤢";
      node.setAttribute("aria-label", (view === large ? "shrink " : "enlarge ") + NAMES[name]);
      node.setAttribute("aria-expanded", String(view === large));
      node.title = view === large ? "back to all views (Escape)" : "enlarge";
    }
  };
  for (const name of Object.keys(NAMES)) {
    const view = root.querySelector(".ccl-view-" + name);
    if (!view) continue;
    const node = button("enlarge", "", () => set(view.classList.contains("ccl-large") ? null : view));
    view.prepend(...(name === "banks" ? [make("div", "heading", "Memory banks")] : []), node);
    buttons.set(view, [node, name]);
  }
  set(null);
  const escape = () => {
    const large = [...buttons.keys()].find((view) => view.classList.contains("ccl-large"));
    if (!large) return false;
    set(null);
    buttons.get(large)[0].focus({ preventScroll: true });
    return true;
  };
  const remove = () => {
    for (const [node] of buttons.values()) node.remove();
    root.querySelector(".ccl-heading")?.remove();
  };
  return { escape, reset: () => set(null), remove };
}

// The steps of the tour as a card that lies on the views, away from what it speaks of, and never on a button of the lab.
function tour(root, steps, shrink) {
  const card = make("div", "tour"), words = make("div", "tour-words"), row = make("div", "tour-row");
  const title = make("strong", "tour-title"), text = make("p", "tour-text"), count = make("span", "tour-count");
  card.setAttribute("role", "region");
  card.setAttribute("aria-label", "A tour of the lab");
  words.setAttribute("aria-live", "polite");
  words.append(title, text);
  const leave = button("tour-leave", "Leave", () => close());
  const back = button("tour-back", "Back", () => go(step - 1)), next = button("tour-next", "Next", () => go(step + 1));
  row.append(leave, count, back, next);
  card.append(words, row);
  card.hidden = true;
  root.prepend(card); // first in the order of the Tab key
  let step = 0, opener = null;

  const lit = () => root.querySelectorAll(".ccl-lit").forEach((node) => node.classList.remove("ccl-lit"));
  function go(number) {
    if (number >= steps.length) return close();
    step = Math.max(0, number);
    const [name, heading, body] = steps[step];
    lit();
    root.querySelector(".ccl-view-" + name)?.classList.add("ccl-lit");
    card.dataset.at = name;
    [title.textContent, text.textContent, count.textContent] = [heading, body, `${step + 1} of ${steps.length}`];
    if (back.disabled !== (step === 0)) {
      if (step === 0 && document.activeElement === back) next.focus({ preventScroll: true });
      back.disabled = step === 0;
    }
    next.textContent = step === steps.length - 1 ? "Done" : "Next";
    next.setAttribute("aria-label", `${next.textContent}: step ${Math.min(step + 2, steps.length)} of ${steps.length}`);
    if (step === steps.length - 1) next.setAttribute("aria-label", "Done: leave the tour");
  }
  function open(from) {
    opener = from ?? null;
    shrink();
    card.hidden = false;
    root.classList.add("ccl-touring");
    go(0);
    if (from) next.focus({ preventScroll: true }); // asked for; on a first visit the keyboard stays where it is
  }
  function close() {
    remember();
    const hadFocus = card.contains(document.activeElement);
    card.hidden = true;
    root.classList.remove("ccl-touring");
    lit();
    if (hadFocus) (opener ?? root.querySelector(".ccl-view-buttons button"))?.focus({ preventScroll: true });
  }
  return { card, open, close, get shown() { return !card.hidden; } };
}

function install(root, model, asked) {
  const undo = [fitScreen(root)], large = enlarge(root);
  undo.push(large.remove);
  const steps = model.get("steps");
  let guide = null;
  if (steps.length) {
    guide = tour(root, steps, large.reset);
    asked.hidden = false;
    asked.addEventListener("click", () => guide.open(asked));
    undo.push(() => guide.card.remove());
    if (!wasSeen()) {
      const first = new IntersectionObserver(([entry]) => { // when it is looked at, and one for a page
        if (!entry.isIntersecting || wasSeen() || document.querySelector(".ccl-touring")) return;
        first.disconnect();
        guide.open();
      }, { threshold: 0.3 });
      first.observe(root.querySelector(".ccl-views"));
      undo.push(() => first.disconnect());
    }
  }
  const keys = (event) => {
    if (event.key !== "Escape") return;
    if (guide?.shown) guide.close();
    else if (!large.escape()) return;
    event.preventDefault();
    event.stopPropagation();
  };
  root.addEventListener("keydown", keys, true);
  undo.push(() => root.removeEventListener("keydown", keys, true));
  const fold = root.querySelector(".ccl-fold"); // says whether what it opens is open
  if (fold) {
    const said = () => fold.setAttribute("aria-expanded", String(fold.classList.contains("mod-active")));
    const observer = new MutationObserver(said);
    observer.observe(fold, { attributes: true, attributeFilter: ["class"] });
    said();
    undo.push(() => observer.disconnect());
  }
  return () => undo.forEach((act) => act());
}

function render({ model, el }) {
  el.classList.add("ccl-guide");
  const asked = button("ask", "Tour", () => {});
  asked.title = "a tour of this lab in six steps";
  asked.hidden = true;
  el.append(asked);
  let remove = null, tries = 0, ended = false;
  const look = () => { // the boxes of a lab come onto the page one after the other
    const root = el.closest(".ccl-lab");
    const ready = root && ["buttons", "sliders", "matrix", "banks", "curves"].every((name) => root.querySelector(".ccl-view-" + name));
    if (ready) remove = install(root, model, asked);
    else if (!ended && tries++ < 400) setTimeout(look, 25);
  };
  requestAnimationFrame(look);
  return () => { ended = true; remove?.(); };
}

export default { render };
