/** How far a piece is: known at each preview, and guessed between two of them from the time that the last one took. */

import { PREVIEWS } from "./draw.js";
import { isOver } from "./pieces.js";

/** Seconds that are expected of a first picture. */
const UNKNOWN = 4;
const PARTS = PREVIEWS + 1;
/** Of the way to the next preview, how much a guess may go. */
const BOLD = 0.85;
const lately = new Map();

/** From 0 to 1. */
export function share(piece, now = performance.now()) {
  if (piece.state === "done") return 1;
  const passed = Math.min(piece.looks.length, PREVIEWS);
  const since = now - (piece.looks.at(-1) ?? piece.began);
  const expected = lately.get(kind(piece)) ?? 1000 * UNKNOWN;
  const pace = passed ? (piece.looks.at(-1) - piece.began) / passed : expected / PARTS;
  return (passed + BOLD * (1 - Math.exp(-since / Math.max(pace, 1)))) / PARTS;
}

/** Remember how long a piece took, for the next of its kind. */
export function learn(piece) {
  if (isOver(piece) && piece.seconds) lately.set(kind(piece), 1000 * piece.seconds);
}

function kind({ asked }) {
  return [asked.model, asked.steps, asked.size].join(" ");
}
