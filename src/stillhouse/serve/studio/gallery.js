/** The gallery: everything that was drawn here, the latest first, each with its request. */

import { button, find, make } from "./element.js";
import { all, remove, watch } from "./pieces.js";
import { share } from "./progress.js";
import { description, standing } from "./words.js";

const cards = new Map();
let acts = null;

/** Begin: `given` are `select`, `again` and `vary`. */
export function openGallery(given) {
  acts = given;
  watch(noticed);
  const dialog = find("#clear-dialog");
  find("#clear-gallery").addEventListener("click", () => {
    dialog.returnValue = "";
    dialog.showModal();
  });
  dialog.addEventListener("close", () => dialog.returnValue === "clear" && remove([...all()]));
  setInterval(() => cards.forEach((card) => card.breathe()), 250);
}

/** Mark what is on the stage. */
export function mark(pieces) {
  for (const [piece, card] of cards) card.mark(pieces.includes(piece));
}

function noticed(what, pieces) {
  for (const piece of pieces) {
    if (what === "removed") {
      cards.get(piece)?.element.remove();
      cards.delete(piece);
    } else if (what === "changed") cards.get(piece)?.update();
  }
  if (what === "added") place();
  const count = all().length;
  find("#gallery").hidden = count === 0;
  find("#gallery-count").textContent = String(count);
}

function place() {
  const list = find("#cards");
  all().forEach((piece, number) => {
    if (cards.has(piece)) return;
    const card = cardOf(piece);
    cards.set(piece, card);
    card.update();
    list.insertBefore(card.element, list.children[number] ?? null);
  });
}

function cardOf(piece) {
  const image = make("img", { alt: "", loading: "lazy" });
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const stand = make("span", { class: "stand" });
  const open = make("button", { type: "button", class: "open", onclick: () => acts.select(piece) }, image, stand, bar);
  const { prompt, model, seed } = piece.asked;
  const actions = make(
    "div",
    { class: "actions" },
    button("Again", () => acts.again(piece), { class: "link", title: "The same request once more" }),
    button("Vary", () => acts.vary(piece), { class: "link", title: "The same request with another seed" }),
  );
  const element = make(
    "li",
    { class: "card" },
    open,
    make("p", { class: "card-prompt" }, prompt || "Without a prompt"),
    make("p", { class: "card-facts" }, `${model} · seed ${seed}`),
    actions,
  );
  return { element, update, breathe, mark };

  function update() {
    element.dataset.state = piece.state;
    open.setAttribute("aria-label", `Show: ${description(piece)}`);
    stand.textContent = standing(piece);
    bar.hidden = piece.state !== "queued" && piece.state !== "running";
    if (piece.look) image.src = piece.look;
    else image.removeAttribute("src");
    actions.hidden = piece.state === "queued" || piece.state === "running";
    breathe();
  }

  function breathe() {
    if (!bar.hidden) bar.value = share(piece);
  }

  function mark(isShown) {
    if (isShown) open.setAttribute("aria-current", "true");
    else open.removeAttribute("aria-current");
  }
}
