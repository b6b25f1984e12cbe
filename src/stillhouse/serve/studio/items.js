/** Items: every image requested on this page with its state, newest first. */

import { MAX_STORED, deleteItems, loadItems, storeItem } from "./store.js";

const items = [];
const listeners = new Set();

/** All items, newest first. */
export function allItems() {
  return items;
}

/** The items of the same group, in order. */
export function itemsOfGroup(item) {
  return items.filter((other) => other.group === item.group).sort((first, second) => first.place - second.place);
}

/**
 * Create an item that is not yet in the list.
 *
 * `request` holds the request fields as text; `initImage` and `mask` are files or null; `shape` is the expected size,
 * such as "64x64"; items of one `group` are shown side by side, ordered by `place`. `state` changes from queued over
 * running to done, failed or cancelled. `imageUrl` is the URL of the current preview or image, `file` the image file.
 */
export function newItem(fields) {
  return {
    id: newId(),
    group: newId(),
    place: 0,
    createdAt: Date.now(),
    initImage: null,
    mask: null,
    shape: null,
    state: "queued",
    previewTimes: [],
    startedAt: performance.now(),
    imageUrl: null,
    file: null,
    resolved: null,
    seconds: null,
    degradedTo: null,
    error: null,
    ...fields,
    abort: new AbortController(),
  };
}

/** A random unique id. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
}

/** Add items at the front; the oldest finished ones are removed if there are too many. */
export function addItems(added) {
  items.unshift(...added);
  notify("added", added);
  const surplus = items.slice(MAX_STORED).filter(isDone);
  if (surplus.length) removeItems(surplus);
}

/** Notify listeners that an item changed, and store it once it is done. */
export function notifyChanged(item) {
  notify("changed", [item]);
  if (item.state !== "done") return;
  const { id, group, place, createdAt, request, initImage, mask, shape, file, resolved, seconds, degradedTo } = item;
  storeItem({ id, group, place, createdAt, request, initImage, mask, shape, file, resolved, seconds, degradedTo });
}

/** Remove items and cancel those that are running. */
export function removeItems(removed) {
  for (const item of removed) {
    const index = items.indexOf(item);
    if (index >= 0) items.splice(index, 1);
    item.abort.abort();
  }
  notify("removed", removed);
  for (const item of removed) if (item.imageUrl?.startsWith("blob:")) URL.revokeObjectURL(item.imageUrl);
  deleteItems(removed.map((item) => item.id));
}

/** Load the stored items. */
export async function restoreItems() {
  const records = await loadItems();
  const restored = records
    .slice(0, MAX_STORED)
    .map((record) => newItem({ ...record, state: "done", imageUrl: URL.createObjectURL(record.file) }));
  items.push(...restored);
  if (records.length > MAX_STORED) deleteItems(records.slice(MAX_STORED).map((record) => record.id));
  notify("added", restored);
}

/** Whether the state of an item is final. */
export function isDone(item) {
  return item.state === "done" || item.state === "failed" || item.state === "cancelled";
}

/** Call `listener(change, items)` when items are added, changed or removed. */
export function onItems(listener) {
  listeners.add(listener);
}

function notify(change, changed) {
  for (const listener of listeners) listener(change, changed);
}
