/** The stage: what was asked for last, or chosen in the gallery; one picture, or several of one prompt side by side. */

import { button, find, make } from "./element.js";
import { frame, titleOf } from "./frame.js";
import { all, isOver, together, watch } from "./pieces.js";

/** Milliseconds between two looks at the clock while something is being drawn. */
const BREATH = 100;

let frames = [];
let acts = null;
let invitation = () => [];

/** Begin: `given` are the acts of frames, `examples` tells prompts that one may begin with. */
export function openStage(given, examples) {
  acts = given;
  invitation = examples;
  watch(noticed);
  setInterval(breathe, BREATH);
  clear();
}

/** Put pieces on the stage. */
export function show(pieces) {
  const isOneOfSeveral = pieces.length > 1;
  frames = pieces.map((piece) => frame(piece, acts, { isOneOfSeveral }));
  for (const one of frames) one.update();
  const { seed } = pieces[0].asked;
  const wasHere = find("#stage").contains(document.activeElement);
  find("#stage").replaceChildren(
    ...(isOneOfSeveral ? [titleOf(pieces[0]), make("p", { class: "soft" }, `side by side, with seed ${seed}`)] : []),
    make("div", { class: "frames", "data-count": pieces.length }, ...frames.map((one) => one.element)),
  );
  // Whoever pressed a button that is no more goes on from the first picture.
  if (wasHere) frames[0].element.focus({ preventScroll: true });
}

/** What is on the stage. */
export function onStage() {
  return frames.map((one) => one.piece);
}

/** Ask in whoever has not drawn anything yet. */
export function clear() {
  frames = [];
  const prompts = invitation().map((prompt) => button(prompt, () => acts.begin(prompt), { class: "example" }));
  find("#stage").replaceChildren(
    make(
      "div",
      { class: "invitation" },
      make("h2", {}, "Describe a picture, and watch it come."),
      prompts.length > 0 && make("p", { class: "soft" }, "For example:"),
      make("ul", {}, prompts.map((prompt) => make("li", {}, prompt))),
    ),
  );
}

function noticed(what, pieces) {
  if (what === "changed") {
    for (const one of frames) if (pieces.includes(one.piece)) one.update();
  } else if (what === "removed" && frames.some((one) => pieces.includes(one.piece))) {
    const left = onStage().filter((piece) => !pieces.includes(piece));
    if (left.length) show(left);
    else if (all().length) show(together(all()[0]));
    else clear();
  }
}

function breathe() {
  for (const one of frames) if (!isOver(one.piece) || one.piece.state === "failed") one.breathe();
}
