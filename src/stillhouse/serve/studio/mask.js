/** Mask editor: paint over an image by mouse, touch, pen or keyboard. The model repaints the painted pixels. */

import { find, say } from "./element.js";

/** Longer side of the canvas in pixels, so that strokes are smooth on small images. */
const FINE = 512;
const MEMORY = 16;

/**
 * Open the mask editor.
 *
 * @param {{file: Blob, mask: Blob | null, width: number, height: number}} image the image and its current mask.
 * @returns {Promise<Blob | null | undefined>} a PNG that is transparent where to repaint; null if nothing is
 *   painted, undefined if the dialog was cancelled.
 */
export async function paintMask({ file, mask, width, height }) {
  const dialog = find("#mask-dialog");
  const canvas = find("#mask-canvas");
  const cursor = find("#mask-cursor");
  const size = find("#mask-size");
  const url = URL.createObjectURL(file);
  const scale = FINE / Math.max(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  find("#mask-picture").src = url;
  find("#mask-sheet").style.aspectRatio = `${width} / ${height}`;
  find("#mask-sheet").style.setProperty("--ratio", width / height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = getComputedStyle(canvas).color;
  const past = [];
  const at = { x: canvas.width / 2, y: canvas.height / 2 };
  let last = null;
  if (mask) await putBack(pen, mask);

  const over = new AbortController();
  const on = (element, name, act) => element.addEventListener(name, act, { signal: over.signal });
  on(canvas, "pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    remember();
    stroke((last = place(event)));
  });
  on(canvas, "pointermove", (event) => {
    follow(place(event));
    if (!last) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) stroke(place(point));
    stroke(place(event));
  });
  for (const name of ["pointerup", "pointercancel"]) on(canvas, name, () => (last = null));
  on(canvas, "keydown", (event) => move(event));
  on(size, "input", () => follow(at));
  on(find("#mask-undo"), "click", undo);
  on(find("#mask-clear"), "click", () => {
    remember();
    pen.clearRect(0, 0, canvas.width, canvas.height);
  });
  on(find("#mask-leave"), "click", () => dialog.close());
  follow(at);
  dialog.returnValue = "";
  dialog.showModal();
  canvas.focus();
  await new Promise((resolve) => on(dialog, "close", resolve));
  over.abort();
  URL.revokeObjectURL(url);
  return dialog.returnValue === "keep" ? holes(canvas, width, height) : undefined;

  function radius() {
    return (Number(size.value) / 200) * Math.min(canvas.width, canvas.height);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * canvas.width;
    return { x, y: ((event.clientY - box.top) / box.height) * canvas.height };
  }

  /** From where the stroke was to where it is, round at both ends. */
  function stroke(to) {
    const from = last ?? to;
    pen.globalCompositeOperation = find("#mask-erase").checked ? "destination-out" : "source-over";
    pen.lineCap = "round";
    pen.lineWidth = 2 * radius();
    pen.strokeStyle = pen.fillStyle;
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
    if (last) last = to;
  }

  function follow(to) {
    Object.assign(at, to);
    const share = (200 * radius()) / canvas.width;
    cursor.style.width = `${share}%`;
    cursor.style.left = `${(100 * at.x) / canvas.width}%`;
    cursor.style.top = `${(100 * at.y) / canvas.height}%`;
  }

  /** Arrows move the brush, with Shift they paint on the way; Space and Enter paint where it is. */
  function move(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      const from = { ...at };
      const far = Math.max(4, radius() / 2);
      const within = (value, most) => Math.min(most, Math.max(0, value));
      follow({ x: within(at.x + step[0] * far, canvas.width), y: within(at.y + step[1] * far, canvas.height) });
      if (event.shiftKey) paintBetween(from, at);
    } else if (event.key === " " || event.key === "Enter") paintBetween(at, at);
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else return;
    event.preventDefault();
  }

  function paintBetween(from, to) {
    remember();
    last = { ...from };
    stroke({ ...to });
    last = null;
  }

  function remember() {
    past.push(pen.getImageData(0, 0, canvas.width, canvas.height));
    if (past.length > MEMORY) past.shift();
  }

  function undo() {
    const before = past.pop();
    if (before) pen.putImageData(before, 0, 0);
    say(before ? "One stroke taken back." : "There is nothing to take back.");
  }
}

/** Paint the holes of an existing mask. */
async function putBack(pen, mask) {
  const { width, height } = pen.canvas;
  pen.fillRect(0, 0, width, height);
  pen.globalCompositeOperation = "destination-out";
  pen.drawImage(await createImageBitmap(mask), 0, 0, width, height);
  pen.globalCompositeOperation = "source-over";
}

/** The mask as a file: black, with holes where something is painted. */
async function holes(painted, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.drawImage(painted, 0, 0, width, height);
  const levels = pen.getImageData(0, 0, width, height).data;
  if (!levels.some((level, place) => place % 4 === 3 && level > 127)) return null;
  pen.globalCompositeOperation = "source-out";
  pen.fillStyle = "black";
  pen.fillRect(0, 0, width, height);
  return canvas.convertToBlob({ type: "image/png" });
}
