/** Stage: the latest item or group, or the entry selected in the gallery. */

import { button, find, make } from "./element.js";
import { frame, titleOf } from "./frame.js";
import { allItems, isDone, itemsOfGroup, onItems } from "./items.js";

/** Interval in milliseconds at which progress is refreshed. */
const REFRESH_MS = 100;

let frames = [];
let actions = null;
let examplePrompts = () => [];

/** Initialise with the actions of frames and a function that returns example prompts. */
export function openStage(itemActions, examples) {
  actions = itemActions;
  examplePrompts = examples;
  onItems(update);
  setInterval(refreshProgress, REFRESH_MS);
  clearStage();
}

/** Show items on the stage. */
export function showItems(items) {
  const isOneOfSeveral = items.length > 1;
  frames = items.map((item) => frame(item, actions, { isOneOfSeveral }));
  for (const entry of frames) entry.update();
  const { seed } = items[0].request;
  const hadFocus = find("#stage").contains(document.activeElement);
  find("#stage").replaceChildren(
    ...(isOneOfSeveral ? [titleOf(items[0]), make("p", { class: "soft" }, `side by side, with seed ${seed}`)] : []),
    make("div", { class: "frames", "data-count": items.length }, ...frames.map((entry) => entry.element)),
  );
  // The focused button was removed: focus the first frame.
  if (hadFocus) frames[0].element.focus({ preventScroll: true });
}

/** The items on the stage. */
export function stageItems() {
  return frames.map((entry) => entry.item);
}

/** Show example prompts on an empty stage. */
export function clearStage() {
  frames = [];
  const prompts = examplePrompts().map((prompt) => button(prompt, () => actions.begin(prompt), { class: "example" }));
  find("#stage").replaceChildren(
    make(
      "div",
      { class: "invitation" },
      make("h2", {}, "Describe an image to generate."),
      prompts.length > 0 && make("p", { class: "soft" }, "For example:"),
      make("ul", {}, prompts.map((prompt) => make("li", {}, prompt))),
    ),
  );
}

function update(change, items) {
  if (change === "changed") {
    for (const entry of frames) if (items.includes(entry.item)) entry.update();
  } else if (change === "removed" && frames.some((entry) => items.includes(entry.item))) {
    const left = stageItems().filter((item) => !items.includes(item));
    if (left.length) showItems(left);
    else if (allItems().length) showItems(itemsOfGroup(allItems()[0]));
    else clearStage();
  }
}

function refreshProgress() {
  for (const entry of frames) if (!isDone(entry.item) || entry.item.state === "failed") entry.refreshProgress();
}
