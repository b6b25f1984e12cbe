/** Elements, made and found. Whatever comes from outside becomes text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An element: `make("button", { type: "button", onclick: again }, "Again")`; what is null or false is left out. */
export function make(name, given = {}, ...inside) {
  return filled(document.createElement(name), given, inside);
}

/** The same for drawings. */
export function makeShape(name, given = {}, ...inside) {
  return filled(document.createElementNS(SVG, name), given, inside);
}

/** A button that says what it does. */
export function button(text, onclick, given = {}) {
  return make("button", { type: "button", onclick, ...given }, text);
}

/** The first element that a selector finds. */
export function find(selector, inside = document) {
  return inside.querySelector(selector);
}

/** Tell those who listen instead of looking. */
export function say(text) {
  find("#live").textContent = text;
}

function filled(element, given, inside) {
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inside.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}
