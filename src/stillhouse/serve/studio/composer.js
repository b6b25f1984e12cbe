/** Form of a request. Empty fields take the model's defaults. */

import { ApiError } from "./api.js";
import { find, make } from "./element.js";
import { newId } from "./items.js";

/** Pseudo model: all models side by side. */
const ALL = "*";
const STORAGE_KEY = "stillhouse.form";
const WHOLE = { pattern: /^\d+$/, allowed: "a whole number" };
const NUMBER = { pattern: /^\d+([.,]\d+)?$/, allowed: "a number" };
const NUMBERS = { seed: WHOLE, steps: WHOLE, guidance: NUMBER, width: WHOLE, height: WHOLE };
/** Default maximum of sliders. */
const SLIDER_MAX = { steps: 60, guidance: 15 };
/** Fields that a distilled model may fix. */
const FIXED = ["steps", "sampler", "negative_prompt"];

let models = [];

/** Initialise; `submitted` is called when the form is submitted. */
export function openComposer(submitted) {
  const form = find("#composer");
  const prompt = find("#prompt");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submitted();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  find("#new-seed").addEventListener("click", () => fill({ seed: String(randomSeed()) }));
  find("#any-seed").addEventListener("click", () => fill({ seed: "" }));
  for (const name of Object.keys(SLIDER_MAX)) {
    find(`#${name}-slider`).addEventListener("input", (event) => {
      form.elements[name].value = event.target.value;
      refresh();
    });
  }
  for (const entry of form.querySelectorAll("[data-shape]")) {
    entry.addEventListener("click", () => reshape(entry.dataset.shape));
  }
  form.addEventListener("input", refresh);
  form.addEventListener("change", refresh);
}

/** Show the models and samplers of the server. */
export function setModels(available, samplers) {
  const form = find("#composer");
  models = available;
  const chosen = form.elements.model?.value;
  const all = models.length > 1 ? [{ id: ALL, name: "Compare", caption: "side by side" }] : [];
  const single = models.map(({ id, steps }) => ({ id, name: id, caption: stepCount(steps) }));
  const choices = [...single, ...all];
  find("#models").replaceChildren(...choices.map(choice));
  form.elements.sampler.replaceChildren(
    make("option", { value: "" }, ""),
    ...Object.entries(samplers).map(([name, summary]) => make("option", { value: name, title: summary }, name)),
  );
  pick(chosen);
  restore();
  refresh();
}

/** The selected model, or the first entry if all are selected. */
export function model() {
  return models.find((entry) => entry.id === find("#composer").elements.model?.value) ?? models[0] ?? null;
}

/** The fields of entry request, or of entry per model with a common seed. Throws ApiError for invalid numbers. */
export function readRequests({ hasInitImage }) {
  const form = find("#composer");
  const value = (name) => form.elements[name].value.trim();
  for (const [name, { pattern, allowed }] of Object.entries(NUMBERS)) {
    const isRight = value(name) === "" || pattern.test(value(name));
    if (!isRight) throw new ApiError(`${name} is '${value(name)}'; allowed: ${allowed}, or nothing`, { status: 400 });
  }
  const size = value("width") || value("height") ? `${side("width")}x${side("height")}` : "";
  const fields = {
    prompt: value("prompt"),
    seed: value("seed") ? BigInt(value("seed")).toString() : String(randomSeed()),
    steps: value("steps") && String(Number(value("steps"))),
    guidance: value("guidance") && String(Number(value("guidance").replace(",", "."))),
    sampler: value("sampler"),
    negative_prompt: value("negative_prompt"),
    size,
    strength: hasInitImage ? value("strength") : "",
  };
  const selected = form.elements.model?.value === ALL ? models : [model()].filter(Boolean);
  const entries = Object.entries(fields).filter(([name, text]) => text !== "" || name === "prompt");
  return selected.map((entry) => {
    const accepted = entries.filter(([name]) => accepts(entry, name));
    return { ...Object.fromEntries(accepted), model: entry.id };
  });
}

/** Whether a model accepts a field. */
function accepts(entry, name) {
  return !entry.distilled?.fixed.includes(name);
}

/** Set field values by name. */
export function fill(values) {
  const form = find("#composer");
  for (const [name, value] of Object.entries(values)) {
    if (name === "model") pick(value);
    else if (form.elements[name]) form.elements[name].value = value;
  }
  refresh();
}

/** Focus the field that an error message starts with, or the prompt, and return its container. */
export function focusField(message) {
  const name = /^(the )?(\w+)/.exec(message)?.[2];
  const field = find("#composer").elements[name] ?? find("#prompt");
  const fold = field.closest?.("details");
  if (fold) fold.open = true;
  field.focus?.();
  field.select?.();
  return field.closest?.(".field, .sheet") ?? null;
}

/** A random seed of the same range as the server's. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

function choice({ id, name, caption }, number) {
  const key = `model-${newId()}`;
  return make(
    "div",
    { class: "choice" },
    make("input", { type: "radio", name: "model", value: id, id: key, checked: number === 0 }),
    make("label", { for: key }, make("strong", {}, name), " ", make("span", {}, caption)),
  );
}

function pick(id) {
  const radios = [...find("#models").querySelectorAll("input")];
  const radio = radios.find((entry) => entry.value === id);
  if (radio) radio.checked = true;
}

/** Show the defaults of empty fields, and keep the others in the session. */
function refresh() {
  const form = find("#composer");
  const isAll = form.elements.model?.value === ALL;
  const own = isAll ? {} : (model() ?? {});
  const [width, height] = (model()?.size ?? "x").split("x");
  for (const [name, value] of Object.entries({ ...pairs(own), width, height })) form.elements[name].placeholder = value;
  for (const name of FIXED) form.elements[name].closest(".field").hidden = !accepts(own, name);
  find("#distilled").hidden = !own.distilled;
  form.elements.sampler.options[0].textContent = isAll ? "default of each model" : `default (${own.sampler ?? ""})`;
  for (const [name, maximum] of Object.entries(SLIDER_MAX)) {
    const slider = find(`#${name}-slider`);
    const value = Number(form.elements[name].value.replace(",", ".") || model()?.[name] || 0);
    const [least, most] = (name === "guidance" && own.distilled?.guidance) || [slider.dataset.least, maximum];
    slider.min = least;
    slider.max = Math.max(most, value);
    slider.value = value;
    slider.dataset.own = String(form.elements[name].value === "");
  }
  find("#any-seed").hidden = form.elements.seed.value === "";
  const values = new FormData(form);
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(Object.fromEntries(values)));
}

function pairs(own) {
  return { steps: String(own.steps ?? "varies"), guidance: String(own.guidance ?? "varies") };
}

function restore() {
  try {
    fill(JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}"));
  } catch {
    sessionStorage.removeItem(STORAGE_KEY);
  }
}

function reshape(shape) {
  const own = model();
  if (!own) return;
  const [width, height] = own.size.split("x").map(Number);
  const long = (side) => String(Math.round((1.5 * side) / own.granularity) * own.granularity);
  const sizes = { own: ["", ""], wide: [long(width), String(height)], tall: [String(width), long(height)] };
  fill({ width: sizes[shape][0], height: sizes[shape][1] });
}

function side(name) {
  const field = find("#composer").elements[name];
  return field.value.trim() || field.placeholder;
}

function stepCount(count) {
  return `${count} ${count === 1 ? "step" : "steps"}`;
}
