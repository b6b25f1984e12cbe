/** Gallery: all items of this browser, newest first, with their requests. */

import { button, find, make } from "./element.js";
import { allItems, onItems, removeItems } from "./items.js";
import { progressOf } from "./progress.js";
import { description, statusText } from "./labels.js";

const cards = new Map();
let actions = null;

/** Initialise with the actions `select`, `again` and `vary`. */
export function openGallery(itemActions) {
  actions = itemActions;
  onItems(update);
  const dialog = find("#clear-dialog");
  find("#clear-gallery").addEventListener("click", () => {
    dialog.returnValue = "";
    dialog.showModal();
  });
  dialog.addEventListener("close", () => dialog.returnValue === "clear" && removeItems([...allItems()]));
  setInterval(() => cards.forEach((card) => card.refreshProgress()), 250);
}

/** Mark the items on the stage. */
export function markItems(items) {
  for (const [item, card] of cards) card.mark(items.includes(item));
}

function update(change, items) {
  for (const item of items) {
    if (change === "removed") {
      cards.get(item)?.element.remove();
      cards.delete(item);
    } else if (change === "changed") cards.get(item)?.update();
  }
  if (change === "added") place();
  const count = allItems().length;
  find("#gallery").hidden = count === 0;
  find("#gallery-count").textContent = String(count);
}

function place() {
  const list = find("#cards");
  allItems().forEach((item, number) => {
    if (cards.has(item)) return;
    const card = cardOf(item);
    cards.set(item, card);
    card.update();
    list.insertBefore(card.element, list.children[number] ?? null);
  });
}

function cardOf(item) {
  const image = make("img", { alt: "", loading: "lazy" });
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const status = make("span", { class: "stand" });
  const select = () => actions.select(item);
  const open = make("button", { type: "button", class: "open", onclick: select }, image, status, bar);
  const { prompt, model, seed } = item.request;
  const buttons = make(
    "div",
    { class: "actions" },
    button("Again", () => actions.again(item), { class: "link", title: "The same request once more" }),
    button("Vary", () => actions.vary(item), { class: "link", title: "The same request with another seed" }),
  );
  const element = make(
    "li",
    { class: "card" },
    open,
    make("p", { class: "card-prompt" }, prompt || "Without a prompt"),
    make("p", { class: "card-facts" }, `${model} · seed ${seed}`),
    buttons,
  );
  return { element, update, refreshProgress, mark };

  function update() {
    element.dataset.state = item.state;
    open.setAttribute("aria-label", `Show: ${description(item)}`);
    status.textContent = statusText(item);
    bar.hidden = item.state !== "queued" && item.state !== "running";
    if (item.imageUrl) image.src = item.imageUrl;
    else image.removeAttribute("src");
    buttons.hidden = item.state === "queued" || item.state === "running";
    refreshProgress();
  }

  function refreshProgress() {
    if (!bar.hidden) bar.value = progressOf(item);
  }

  function mark(isShown) {
    if (isShown) open.setAttribute("aria-current", "true");
    else open.removeAttribute("aria-current");
  }
}
