// Small helpers for elements. Texts are always set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** A new element; properties and attributes by name, `data` as an object, `on...` functions. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A button with a text, or with an icon that `aria-label` names. */
export function button(content, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, content);
}

const SVG = "http://www.w3.org/2000/svg";

/** A line icon from the data of its path. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS(SVG, "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

export const ICONS = {
  download: "M12 4v11m0 0-4-4m4 4 4-4M5 20h14",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  remove: "M6 6l12 12M18 6 6 18",
  restore: "M4 5v5h5M4.6 10A8 8 0 1 1 4 14",
};

let toastTimer = 0;

/** A short message at the bottom, with a button if there is something to undo. */
export function toast(text, action = null) {
  const box = $("toast");
  const close = () => { box.hidden = true; };
  box.replaceChildren(make("span", {}, text));
  if (action) {
    const run = () => { close(); action.run(); };
    box.append(button(action.label, run, { class: "link" }));
  }
  box.append(button(icon(ICONS.remove), close, { class: "quiet icon", "aria-label": "Dismiss" }));
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(close, action ? 12000 : 6000);
}

/** Tell screen readers; the text is not shown. */
export function announce(text) {
  $("live").textContent = text;
}

/** Stored text, or null where storage is switched off or empty. */
export function stored(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return null;
  }
}

/** Store a text; null removes it. Without storage the page works and forgets. */
export function store(storage, key, value) {
  try {
    if (value === null) window[storage].removeItem(key);
    else window[storage].setItem(key, value);
  } catch {
    // Switched off, or full.
  }
}
