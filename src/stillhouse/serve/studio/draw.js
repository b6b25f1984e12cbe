/** Drawing a piece: its request to the server, its events to the page. */

import { Trouble, ask, events } from "./api.js";
import { change, isOver } from "./pieces.js";
import { readNote } from "./png.js";

/** Previews of each picture: as many as the protocol allows. */
export const PREVIEWS = 3;
/** Pictures asked for at the same time. Browsers open six connections to a server, and the page needs some, too. */
const MOST = 4;
const NUMBERS = new Set(["seed", "steps", "guidance", "strength"]);

let running = 0;
const line = [];

/** Draw a piece as soon as there is room; whatever happens is told by `change`, and nothing is thrown. */
export async function draw(piece) {
  const hasTurn = await turn(piece.abort.signal);
  try {
    if (hasTurn) await drawNow(piece);
  } catch (error) {
    piece.trouble = error;
  } finally {
    if (hasTurn) handOver();
  }
  if (!isOver(piece)) {
    piece.state = piece.abort.signal.aborted ? "cancelled" : "failed";
    piece.look = null;
    change(piece);
  }
}

/** Wait for one's turn; false where one was stopped before it came. */
function turn(signal) {
  if (running < MOST) {
    running += 1;
    return true;
  }
  return new Promise((resolve) => {
    line.push(resolve);
    signal.addEventListener("abort", () => {
      const place = line.indexOf(resolve);
      if (place >= 0) line.splice(place, 1)[0](false);
    });
  });
}

function handOver() {
  const next = line.shift();
  if (next) next(true);
  else running -= 1;
}

async function drawNow(piece) {
  piece.began = performance.now();
  const response = await ask(`/v1/images/${piece.start ? "edits" : "generations"}`, {
    method: "POST",
    signal: piece.abort.signal,
    ...(piece.start ? form(piece) : json(piece)),
  });
  piece.state = "running";
  piece.degraded = response.headers.get("x-degraded-to");
  change(piece);
  for await (const { name, data } of events(response)) {
    if (name.endsWith(".partial_image")) see(piece, data);
    else if (name.endsWith(".completed")) await end(piece, data);
    else if (name === "error") throw new Trouble(data.error.message, { status: 500, code: data.error.code });
  }
  if (!isOver(piece)) throw new Trouble("the connection broke before the picture was done");
}

function see(piece, data) {
  piece.looks.push(performance.now());
  piece.look = `data:image/webp;base64,${data.b64_json}`;
  change(piece);
}

async function end(piece, data) {
  piece.seconds = (performance.now() - piece.began) / 1000;
  piece.file = fileOf(data.b64_json, `image/${data.output_format}`);
  piece.resolved = (await readNote(piece.file))?.request ?? null;
  if (piece.abort.signal.aborted) return;
  piece.look = URL.createObjectURL(piece.file);
  piece.state = "done";
  change(piece);
}

/** The request as JSON. Numbers go as they were typed: seeds have more digits than JavaScript's numbers can hold. */
function json(piece) {
  const fields = Object.entries(piece.asked).map(
    ([name, value]) => `${JSON.stringify(name)}:${NUMBERS.has(name) ? value : JSON.stringify(value)}`,
  );
  const body = `{${[...fields, '"stream":true', `"partial_images":${PREVIEWS}`].join(",")}}`;
  return { body, headers: { "content-type": "application/json" } };
}

function form(piece) {
  const body = new FormData();
  for (const [name, value] of Object.entries(piece.asked)) body.append(name, value);
  body.append("stream", "true");
  body.append("partial_images", String(PREVIEWS));
  body.append("image", piece.start, "image.png");
  if (piece.mask) body.append("mask", piece.mask, "mask.png");
  return { body };
}

function fileOf(text, type) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type });
}
