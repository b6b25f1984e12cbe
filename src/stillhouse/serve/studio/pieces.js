/** The pieces: every picture that was asked for here, from the asking to the end, the latest first. */

import { MOST, forget, keep, kept } from "./store.js";

const pieces = [];
const watchers = new Set();

/** All of them, the latest first. */
export function all() {
  return pieces;
}

/** Those that were asked for together. */
export function together(piece) {
  return pieces.filter((other) => other.group === piece.group).sort((one, other) => one.place - other.place);
}

/**
 * A new one, not yet among the others.
 *
 * `asked` holds the fields of the request as text; `start` and `mask` are files or null; `shape` is the size that is
 * expected, as "64x64"; pieces of one `group` stand side by side, each in its `place`. `state` goes from asked over
 * drawing to done, failed or stopped; `look` is the address of what can be seen of it, `file` the picture itself.
 */
export function newPiece(given) {
  return {
    id: newName(),
    group: newName(),
    place: 0,
    when: Date.now(),
    start: null,
    mask: null,
    shape: null,
    state: "queued",
    looks: [],
    began: performance.now(),
    look: null,
    file: null,
    resolved: null,
    seconds: null,
    degraded: null,
    trouble: null,
    ...given,
    abort: new AbortController(),
  };
}

/** A name that no other has. */
export function newName() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
}

/** Put some before all others; the oldest that are too many go. */
export function add(fresh) {
  pieces.unshift(...fresh);
  tell("added", fresh);
  const surplus = pieces.slice(MOST).filter(isOver);
  if (surplus.length) remove(surplus);
}

/** Tell that a piece is not as it was; one that is done is kept. */
export function change(piece) {
  tell("changed", [piece]);
  if (piece.state !== "done") return;
  const { id, group, place, when, asked, start, mask, shape, file, resolved, seconds, degraded } = piece;
  keep({ id, group, place, when, asked, start, mask, shape, file, resolved, seconds, degraded });
}

/** Take some away; those that are being drawn are stopped. */
export function remove(gone) {
  for (const piece of gone) {
    const place = pieces.indexOf(piece);
    if (place >= 0) pieces.splice(place, 1);
    piece.abort.abort();
  }
  tell("removed", gone);
  for (const piece of gone) if (piece.look?.startsWith("blob:")) URL.revokeObjectURL(piece.look);
  forget(gone.map((piece) => piece.id));
}

/** Bring back what was kept. */
export async function recall() {
  const records = await kept();
  const old = records
    .slice(0, MOST)
    .map((record) => newPiece({ ...record, state: "done", look: URL.createObjectURL(record.file) }));
  pieces.push(...old);
  if (records.length > MOST) forget(records.slice(MOST).map((record) => record.id));
  tell("added", old);
}

/** Whether nothing more will happen to it. */
export function isOver(piece) {
  return piece.state === "done" || piece.state === "failed" || piece.state === "cancelled";
}

/** `watcher(what, pieces)` is called when pieces were added, changed or removed. */
export function watch(watcher) {
  watchers.add(watcher);
}

function tell(what, which) {
  for (const watcher of watchers) watcher(what, which);
}
