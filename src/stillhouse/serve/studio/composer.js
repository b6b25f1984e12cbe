/** The form: what is asked for. A field that is left empty is as the model has it. */

import { Trouble } from "./api.js";
import { find, make } from "./element.js";
import { newName } from "./pieces.js";

/** Instead of a model: all of them, side by side. */
const ALL = "*";
const PLACE = "stillhouse.form";
const WHOLE = { pattern: /^\d+$/, allowed: "a whole number" };
const NUMBER = { pattern: /^\d+([.,]\d+)?$/, allowed: "a number" };
const NUMBERS = { seed: WHOLE, steps: WHOLE, guidance: NUMBER, width: WHOLE, height: WHOLE };
/** Of dials without a longer range of their own: how far the slider goes. */
const REACH = { steps: 60, guidance: 15 };
/** What a distilled model may have no choice of. */
const FIXED = ["steps", "sampler", "negative_prompt"];

let models = [];

/** Begin; `submitted` is called when a picture is asked for. */
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
  find("#new-seed").addEventListener("click", () => fill({ seed: String(anySeed()) }));
  find("#any-seed").addEventListener("click", () => fill({ seed: "" }));
  for (const name of Object.keys(REACH)) {
    find(`#${name}-slider`).addEventListener("input", (event) => {
      form.elements[name].value = event.target.value;
      refresh();
    });
  }
  for (const one of form.querySelectorAll("[data-shape]")) {
    one.addEventListener("click", () => reshape(one.dataset.shape));
  }
  form.addEventListener("input", refresh);
  form.addEventListener("change", refresh);
}

/** Offer these models and samplers, as the server has them. */
export function offer(given, samplers) {
  const form = find("#composer");
  models = given;
  const chosen = form.elements.model?.value;
  const all = models.length > 1 ? [{ id: ALL, name: "Compare", told: "side by side" }] : [];
  const choices = [...models.map((one) => ({ id: one.id, name: one.id, told: steps(one.steps) })), ...all];
  find("#models").replaceChildren(...choices.map(choice));
  form.elements.sampler.replaceChildren(
    make("option", { value: "" }, ""),
    ...Object.entries(samplers).map(([name, summary]) => make("option", { value: name, title: summary }, name)),
  );
  pick(chosen);
  restore();
  refresh();
}

/** The model that is chosen, or the first one where all are. */
export function model() {
  return models.find((one) => one.id === find("#composer").elements.model?.value) ?? models[0] ?? null;
}

/** What is asked for: the fields of one request, or of several with one seed. Throws Trouble where one is no number. */
export function asked({ hasStart }) {
  const form = find("#composer");
  const value = (name) => form.elements[name].value.trim();
  for (const [name, { pattern, allowed }] of Object.entries(NUMBERS)) {
    const isRight = value(name) === "" || pattern.test(value(name));
    if (!isRight) throw new Trouble(`${name} is '${value(name)}'; allowed: ${allowed}, or nothing`, { status: 400 });
  }
  const size = value("width") || value("height") ? `${side("width")}x${side("height")}` : "";
  const fields = {
    prompt: value("prompt"),
    seed: value("seed") ? BigInt(value("seed")).toString() : String(anySeed()),
    steps: value("steps") && String(Number(value("steps"))),
    guidance: value("guidance") && String(Number(value("guidance").replace(",", "."))),
    sampler: value("sampler"),
    negative_prompt: value("negative_prompt"),
    size,
    strength: hasStart ? value("strength") : "",
  };
  const which = form.elements.model?.value === ALL ? models : [model()].filter(Boolean);
  const given = Object.entries(fields).filter(([name, text]) => text !== "" || name === "prompt");
  return which.map((one) => ({ ...Object.fromEntries(given.filter(([name]) => takes(one, name))), model: one.id }));
}

/** Whether a request may tell this model so. */
function takes(one, name) {
  return !one.distilled?.fixed.includes(name);
}

/** Put values into fields, by name. */
export function fill(values) {
  const form = find("#composer");
  for (const [name, value] of Object.entries(values)) {
    if (name === "model") pick(value);
    else if (form.elements[name]) form.elements[name].value = value;
  }
  refresh();
}

/** Lead to the field that a refusal begins with, to the prompt where it names none; what belongs to it is returned. */
export function mend(message) {
  const name = /^(the )?(\w+)/.exec(message)?.[2];
  const field = find("#composer").elements[name] ?? find("#prompt");
  const fold = field.closest?.("details");
  if (fold) fold.open = true;
  field.focus?.();
  field.select?.();
  return field.closest?.(".field, .sheet") ?? null;
}

/** A seed as the server would draw one. */
export function anySeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

function choice({ id, name, told }, number) {
  const key = `model-${newName()}`;
  return make(
    "div",
    { class: "choice" },
    make("input", { type: "radio", name: "model", value: id, id: key, checked: number === 0 }),
    make("label", { for: key }, make("strong", {}, name), " ", make("span", {}, told)),
  );
}

function pick(id) {
  const radios = [...find("#models").querySelectorAll("input")];
  const radio = radios.find((one) => one.value === id);
  if (radio) radio.checked = true;
}

/** Show what empty fields mean, and keep what is in the others while this tab is open. */
function refresh() {
  const form = find("#composer");
  const isAll = form.elements.model?.value === ALL;
  const own = isAll ? {} : (model() ?? {});
  const [width, height] = (model()?.size ?? "x").split("x");
  for (const [name, value] of Object.entries({ ...pairs(own), width, height })) form.elements[name].placeholder = value;
  for (const name of FIXED) form.elements[name].closest(".field").hidden = !takes(own, name);
  find("#distilled").hidden = !own.distilled;
  form.elements.sampler.options[0].textContent = isAll ? "each its own" : `as the model has it (${own.sampler ?? ""})`;
  for (const [name, reach] of Object.entries(REACH)) {
    const slider = find(`#${name}-slider`);
    const value = Number(form.elements[name].value.replace(",", ".") || model()?.[name] || 0);
    const [least, most] = (name === "guidance" && own.distilled?.guidance) || [slider.dataset.least, reach];
    slider.min = least;
    slider.max = Math.max(most, value);
    slider.value = value;
    slider.dataset.own = String(form.elements[name].value === "");
  }
  find("#any-seed").hidden = form.elements.seed.value === "";
  const values = new FormData(form);
  sessionStorage.setItem(PLACE, JSON.stringify(Object.fromEntries(values)));
}

function pairs(own) {
  return { steps: String(own.steps ?? "varies"), guidance: String(own.guidance ?? "varies") };
}

function restore() {
  try {
    fill(JSON.parse(sessionStorage.getItem(PLACE) ?? "{}"));
  } catch {
    sessionStorage.removeItem(PLACE);
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

function steps(count) {
  return `${count} ${count === 1 ? "step" : "steps"}`;
}
