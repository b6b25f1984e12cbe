/** The picture to start from: taken from a file, the clipboard or the gallery, and fitted to what a model can draw. */

import { find, say } from "./element.js";
import { paintMask } from "./mask.js";

/** A file that is so many times the model's own area stays as large as it is. */
const ROOMY = 4;
const GENTLE = 0.8;
const whole = { file: null, mask: null, width: 0, height: 0, urls: [] };
let modelOf = () => null;

/** What to start from: files, and their size as "64x64"; all null where nothing was chosen. */
export function start() {
  const { file, mask, width, height } = whole;
  return { start: file, mask, shape: file ? `${width}x${height}` : null };
}

/** Let a start be chosen; `model` tells the size and granularity to fit it to, `changed` is called when it changed. */
export function watchStart(model, changed) {
  modelOf = model;
  const field = find("#start-file");
  const zone = find("#start-zone");
  const refused = (error) => {
    find("#start-error").textContent = "This file cannot be read as a picture. PNG, JPEG and WebP can.";
    find("#start-error").hidden = false;
    console.info("no picture", error);
  };
  const take = (file) => file && setStart(file).then(changed, refused);

  field.addEventListener("change", () => {
    take(field.files[0]);
    field.value = "";
  });
  find("#start-remove").addEventListener("click", () => {
    setStart(null).then(changed);
    field.focus();
  });
  find("#start-mask").addEventListener("click", async () => {
    const mask = await paintMask(whole);
    if (mask === undefined) return;
    whole.mask = mask;
    show();
    changed();
  });
  find("#strength").addEventListener("input", () => {
    find("#strength").dataset.touched = "";
    showStrength();
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      zone.classList.toggle("is-over", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) {
      event.preventDefault();
      take(file);
    }
  });
}

/** Start from this file, with this mask; null starts from nothing. */
export async function setStart(file, mask = null) {
  const fitted = file ? await fit(file) : { file: null, width: 0, height: 0 };
  Object.assign(whole, fitted, { mask: file ? mask : null });
  find("#start-error").hidden = true;
  show();
  say(file ? `Starting from a picture of ${fitted.width} by ${fitted.height} pixels.` : "Starting from nothing.");
}

/** Set how far to go from it, or leave it to what is usual. */
export function setStrength(value) {
  const field = find("#strength");
  if (value) {
    field.value = value;
    field.dataset.touched = "";
  } else delete field.dataset.touched;
  showStrength();
}

async function fit(file) {
  const picture = await createImageBitmap(file);
  const { width, height } = sizeFor(picture);
  if (width === picture.width && height === picture.height && file.type === "image/png") return { file, width, height };
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  return { file: await canvas.convertToBlob({ type: "image/png" }), width, height };
}

function sizeFor({ width, height }) {
  const { area, granularity } = modelOf() ?? { area: width * height, granularity: 1 };
  const isWhole = width % granularity === 0 && height % granularity === 0;
  if (isWhole && width * height <= ROOMY * area) return { width, height };
  const scale = Math.min(1, Math.sqrt(area / (width * height)));
  const round = (side) => Math.max(granularity, Math.round((side * scale) / granularity) * granularity);
  return { width: round(width), height: round(height) };
}

function show() {
  const { file, mask } = whole;
  find("#start-chosen").hidden = !file;
  find("#start-zone").hidden = Boolean(file);
  for (const url of whole.urls) URL.revokeObjectURL(url);
  whole.urls = [file, mask].map((one) => (one ? URL.createObjectURL(one) : null));
  const [picture, veil] = [find("#start-picture"), find("#start-veil")];
  if (file) picture.src = whole.urls[0];
  else picture.removeAttribute("src");
  veil.hidden = !mask;
  if (mask) veil.src = whole.urls[1];
  else veil.removeAttribute("src");
  find("#start-size").textContent = file ? `${whole.width} × ${whole.height}${mask ? ", with a mask" : ""}` : "";
  find("#start-mask").textContent = mask ? "Change the mask" : "Paint a mask";
  showStrength();
}

/** As the server has it where nobody says: a start is changed gently, what is masked is painted anew. */
function showStrength() {
  const field = find("#strength");
  if (!("touched" in field.dataset)) field.value = whole.mask ? 1 : GENTLE;
  find("#strength-value").textContent = `${Math.round(100 * field.value)} %`;
}
