/** Image generation: sends requests to the server and applies its events to items. */

import { ApiError, events, fetchOk } from "./api.js";
import { isDone, notifyChanged } from "./items.js";
import { readNote } from "./png.js";

/** Previews per image, the largest number of the protocol. */
export const PREVIEWS = 3;
/** Concurrent requests. Browsers open six connections per server, and the page needs some for itself. */
const MAX_CONCURRENT = 4;
const NUMBERS = new Set(["seed", "steps", "guidance", "strength"]);

let running = 0;
const queue = [];

/** Generate an item when a slot is free. Progress and errors are reported by `notifyChanged`; nothing is thrown. */
export async function generate(item) {
  const hasSlot = await acquireSlot(item.abort.signal);
  try {
    if (hasSlot) await sendRequest(item);
  } catch (error) {
    item.error = error;
  } finally {
    if (hasSlot) releaseSlot();
  }
  if (!isDone(item)) {
    item.state = item.abort.signal.aborted ? "cancelled" : "failed";
    item.imageUrl = null;
    notifyChanged(item);
  }
}

/** Wait for a slot; resolves to false if the request is aborted first. */
function acquireSlot(signal) {
  if (running < MAX_CONCURRENT) {
    running += 1;
    return true;
  }
  return new Promise((resolve) => {
    queue.push(resolve);
    signal.addEventListener("abort", () => {
      const index = queue.indexOf(resolve);
      if (index >= 0) queue.splice(index, 1)[0](false);
    });
  });
}

function releaseSlot() {
  const next = queue.shift();
  if (next) next(true);
  else running -= 1;
}

async function sendRequest(item) {
  item.startedAt = performance.now();
  const response = await fetchOk(`/v1/images/${item.initImage ? "edits" : "generations"}`, {
    method: "POST",
    signal: item.abort.signal,
    ...(item.initImage ? formBody(item) : jsonBody(item)),
  });
  item.state = "running";
  item.degradedTo = response.headers.get("x-degraded-to");
  notifyChanged(item);
  for await (const { name, data } of events(response)) {
    if (name.endsWith(".partial_image")) showPreview(item, data);
    else if (name.endsWith(".completed")) await finish(item, data);
    else if (name === "error") throw new ApiError(data.error.message, { status: 500, code: data.error.code });
  }
  if (!isDone(item)) throw new ApiError("the connection was lost before the image was finished");
}

function showPreview(item, data) {
  item.previewTimes.push(performance.now());
  item.imageUrl = `data:image/webp;base64,${data.b64_json}`;
  notifyChanged(item);
}

async function finish(item, data) {
  item.seconds = (performance.now() - item.startedAt) / 1000;
  item.file = decodeFile(data.b64_json, `image/${data.output_format}`);
  item.resolved = (await readNote(item.file))?.request ?? null;
  if (item.abort.signal.aborted) return;
  item.imageUrl = URL.createObjectURL(item.file);
  item.state = "done";
  notifyChanged(item);
}

/** The request as JSON. Numbers are sent as typed, because seeds have more digits than JavaScript numbers can hold. */
function jsonBody(item) {
  const fields = Object.entries(item.request).map(
    ([name, value]) => `${JSON.stringify(name)}:${NUMBERS.has(name) ? value : JSON.stringify(value)}`,
  );
  const body = `{${[...fields, '"stream":true', `"partial_images":${PREVIEWS}`].join(",")}}`;
  return { body, headers: { "content-type": "application/json" } };
}

function formBody(item) {
  const body = new FormData();
  for (const [name, value] of Object.entries(item.request)) body.append(name, value);
  body.append("stream", "true");
  body.append("partial_images", String(PREVIEWS));
  body.append("image", item.initImage, "image.png");
  if (item.mask) body.append("mask", item.mask, "mask.png");
  return { body };
}

function decodeFile(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}
