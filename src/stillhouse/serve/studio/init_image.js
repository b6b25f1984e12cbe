/** Input image: from a file, the clipboard or the gallery, resized to a size that the model accepts. */

import { find, say } from "./element.js";
import { paintMask } from "./mask.js";

/** Files up to this multiple of the model's default area are not resized. */
const MAX_AREA_RATIO = 4;
const DEFAULT_STRENGTH = 0.8;
const current = { file: null, mask: null, width: 0, height: 0, urls: [] };
let modelOf = () => null;

/** The input image and mask as files, and their size such as "64x64"; all null if there is none. */
export function initImage() {
  const { file, mask, width, height } = current;
  return { initImage: file, mask, shape: file ? `${width}x${height}` : null };
}

/** Initialise. `model` returns the area and granularity of the model; `changed` is called after a change. */
export function openInitImage(model, changed) {
  modelOf = model;
  const field = find("#start-file");
  const zone = find("#start-zone");
  const refused = (error) => {
    find("#start-error").textContent = "This file cannot be read as an image. Choose a PNG, JPEG or WebP file.";
    find("#start-error").hidden = false;
    console.info("not an image", error);
  };
  const take = (file) => file && setInitImage(file).then(changed, refused);

  field.addEventListener("change", () => {
    take(field.files[0]);
    field.value = "";
  });
  find("#start-remove").addEventListener("click", () => {
    setInitImage(null).then(changed);
    field.focus();
  });
  find("#start-mask").addEventListener("click", async () => {
    const mask = await paintMask(current);
    if (mask === undefined) return;
    current.mask = mask;
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
    const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
    if (file) {
      event.preventDefault();
      take(file);
    }
  });
}

/** Set or, with null, remove the input image and its mask. */
export async function setInitImage(file, mask = null) {
  const fitted = file ? await fit(file) : { file: null, width: 0, height: 0 };
  Object.assign(current, fitted, { mask: file ? mask : null });
  find("#start-error").hidden = true;
  show();
  say(file ? `Input image of ${fitted.width} by ${fitted.height} pixels.` : "No input image.");
}

/** Set the denoising strength, or reset it to the default. */
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
  if (isWhole && width * height <= MAX_AREA_RATIO * area) return { width, height };
  const scale = Math.min(1, Math.sqrt(area / (width * height)));
  const round = (side) => Math.max(granularity, Math.round((side * scale) / granularity) * granularity);
  return { width: round(width), height: round(height) };
}

function show() {
  const { file, mask } = current;
  find("#start-chosen").hidden = !file;
  find("#start-zone").hidden = Boolean(file);
  for (const url of current.urls) URL.revokeObjectURL(url);
  current.urls = [file, mask].map((blob) => (blob ? URL.createObjectURL(blob) : null));
  const [picture, veil] = [find("#start-picture"), find("#start-veil")];
  if (file) picture.src = current.urls[0];
  else picture.removeAttribute("src");
  veil.hidden = !mask;
  if (mask) veil.src = current.urls[1];
  else veil.removeAttribute("src");
  find("#start-size").textContent = file ? `${current.width} × ${current.height}${mask ? ", with a mask" : ""}` : "";
  find("#start-mask").textContent = mask ? "Change the mask" : "Paint a mask";
  showStrength();
}

/** Show the strength. The defaults equal the server's: 1 with a mask, else lower. */
function showStrength() {
  const field = find("#strength");
  if (!("touched" in field.dataset)) field.value = current.mask ? 1 : DEFAULT_STRENGTH;
  find("#strength-value").textContent = `${Math.round(100 * field.value)} %`;
}
