/** DOM helpers. Strings become text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Create an element: `make("button", { type: "button", onclick: again }, "Again")`; null and false are left out. */
export function make(name, given = {}, ...inside) {
  return filled(document.createElement(name), given, inside);
}

/** Create an SVG element. */
export function makeShape(name, given = {}, ...inside) {
  return filled(document.createElementNS(SVG, name), given, inside);
}

/** Create a button. */
export function button(text, onclick, given = {}) {
  return make("button", { type: "button", onclick, ...given }, text);
}

/** The first element that matches a selector. */
export function find(selector, inside = document) {
  return inside.querySelector(selector);
}

/** Announce a text to screen readers. */
export function say(text) {
  find("#live").textContent = text;
}

function filled(element, given, inside) {
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inside.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
