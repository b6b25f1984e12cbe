/** Progress of an item: exact at each preview, extrapolated in between from the time per preview. */

import { PREVIEWS } from "./generate.js";
import { isDone } from "./items.js";

/** Expected seconds of a first image. */
const DEFAULT_SECONDS = 4;
const PARTS = PREVIEWS + 1;
/** Largest extrapolated share of the way to the next preview. */
const MAX_EXTRAPOLATION = 0.85;
const recentDurations = new Map();

/** The progress from 0 to 1. */
export function progressOf(item, now = performance.now()) {
  if (item.state === "done") return 1;
  const passed = Math.min(item.previewTimes.length, PREVIEWS);
  const since = now - (item.previewTimes.at(-1) ?? item.startedAt);
  const expected = recentDurations.get(kindOf(item)) ?? 1000 * DEFAULT_SECONDS;
  const pace = passed ? (item.previewTimes.at(-1) - item.startedAt) / passed : expected / PARTS;
  return (passed + MAX_EXTRAPOLATION * (1 - Math.exp(-since / Math.max(pace, 1)))) / PARTS;
}

/** Remember the duration of an item for later items of the same kind. */
export function recordDuration(item) {
  if (isDone(item) && item.seconds) recentDurations.set(kindOf(item), 1000 * item.seconds);
}

function kindOf({ request }) {
  return [request.model, request.steps, request.size].join(" ");
}
