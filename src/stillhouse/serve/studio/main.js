/** Studio: loads the server's models and connects the parts of the page. */

import { fetchJson } from "./api.js";
import { fill, focusField, model, openComposer, randomSeed, readRequests, setModels } from "./composer.js";
import { generate } from "./generate.js";
import { find, say } from "./element.js";
import { openEngine, setAuthenticated } from "./engine.js";
import { markItems, openGallery } from "./gallery.js";
import { askKey, watchKey } from "./key.js";
import { addItems, itemsOfGroup, newId, newItem, onItems, removeItems, restoreItems } from "./items.js";
import { recordDuration } from "./progress.js";
import { offerReports } from "./reports.js";
import { clearStage, openStage, showItems, stageItems } from "./stage.js";
import { initImage, openInitImage, setInitImage, setStrength } from "./init_image.js";
import { explain } from "./errors.js";
import { statusText } from "./labels.js";

/** Number of example prompts shown. */
const MAX_EXAMPLES = 3;

let examples = [];

const actions = {
  begin(prompt) {
    fill({ prompt });
    submit();
  },
  again: (item) => generateAll([copyItem(item, { request: exactRequest(item) })]),
  vary: (item) => generateAll([copyItem(item, { request: { ...exactRequest(item), seed: String(randomSeed()) } })]),
  retry(item) {
    const { request, group, place, createdAt } = item;
    removeItems([item]);
    generateAll([copyItem(item, { request, group, place, createdAt })]);
  },
  stop: (item) => item.abort.abort(),
  remove: (item) => removeItems([item]),
  key: () => askKey(),
  mend: (item) => notice(item.error, focusField(item.error.message)),
  select(item) {
    show(itemsOfGroup(item));
    find("#stage").scrollIntoView({ block: "start" });
  },
  async start(item) {
    await setInitImage(item.file);
    if (!find("#prompt").value.trim()) fill({ prompt: item.request.prompt });
    find("#prompt").focus();
  },
  async take(item) {
    const { strength, size, ...fields } = exactRequest(item);
    const [width, height] = (size ?? "x").split("x");
    fill({ steps: "", guidance: "", sampler: "", negative_prompt: "", ...fields, width, height });
    await setInitImage(item.initImage, item.mask);
    setStrength(strength);
    find("#prompt").focus();
  },
};

openComposer(submit);
openStage(actions, () => examples);
openGallery(actions);
openEngine();
openInitImage(
  () => sizeOf(model()),
  () => find("#start-mask").focus(),
);
watchKey(loadModels);
onItems(follow);
find("#suggest").addEventListener("click", () => {
  fill({ prompt: examplesOf(model())[randomSeed() % examplesOf(model()).length] });
  find("#prompt").focus();
});
find("#composer").addEventListener("change", suggest);
await loadModels();
await restoreItems();
if (!stageItems().length) clearStage();

/** Load the settings and models of the server for the current key. */
async function loadModels() {
  let facts = null;
  try {
    facts = await fetchJson("/v1/studio");
    find("#version").textContent = facts.version;
    find("#open-key").hidden = !facts.requires_key;
    setAuthenticated(facts.is_authenticated);
    if (!facts.is_authenticated) {
      setModels([], facts.samplers);
      askKey(facts.reason);
      return;
    }
    const { data } = await fetchJson("/v1/models");
    const models = data.map((entry) => ({ ...entry, ...facts.models[entry.id] }));
    setModels(models, facts.samplers);
    offerReports(models);
    notice(null);
  } catch (error) {
    setAuthenticated(true);
    notice(error);
    return;
  }
  suggest();
  if (!stageItems().length) clearStage();
}

/** Generate the requests of the form. */
async function submit() {
  const init = initImage();
  let requests = [];
  try {
    requests = readRequests({ hasInitImage: Boolean(init.initImage) });
    if (!requests.length) await loadModels();
  } catch (error) {
    notice(error, error.status === 400 ? focusField(error.message) : null);
    return;
  }
  notice(null);
  const group = newId();
  const createdAt = Date.now();
  const shape = init.shape ?? model()?.size;
  generateAll(requests.map((request, place) => newItem({ ...init, request, shape, group, place, createdAt })));
}

/** A new item with the input image of another one. */
function copyItem({ initImage, mask, shape }, fields) {
  return newItem({ initImage, mask, shape, ...fields });
}

/** Show new items on the stage and generate them. */
function generateAll(items) {
  if (!items.length) return;
  addItems(items);
  show(itemsOfGroup(items[0]));
  if (matchMedia("(max-width: 899px)").matches) find("#stage").scrollIntoView({ block: "start" });
  say(items.length > 1 ? `Generating ${items.length} images.` : "Generating.");
  for (const item of items) generate(item);
}

function show(items) {
  showItems(items);
  markItems(items);
}

/** The request with resolved defaults, so that it gives the same image even if the model's defaults change. */
function exactRequest({ request, resolved, degradedTo }) {
  if (!resolved || degradedTo) return { ...request };
  const { steps, guidance, sampler } = resolved;
  return { ...request, steps: String(steps), guidance: String(guidance), sampler };
}

function follow(change, items) {
  if (change !== "changed") return;
  for (const item of items) {
    recordDuration(item);
    const { model, seed } = item.request;
    if (item.state === "done") say(`Generated by ${model} in ${item.seconds.toFixed(1)} seconds, seed ${seed}.`);
    else if (item.previewTimes.length === 1) say(`${statusText(item)}: first preview.`);
  }
}

function suggest() {
  examples = examplesOf(model()).slice(0, MAX_EXAMPLES);
  find("#suggest").hidden = examples.length === 0;
}

function examplesOf(model) {
  return model?.examples ?? [];
}

function sizeOf(model) {
  if (!model) return null;
  const [width, height] = model.size.split("x").map(Number);
  return { area: width * height, granularity: model.granularity };
}

/** Show an error at a field or above the form; null hides it. */
function notice(error, field = null) {
  const line = find("#notice");
  line.hidden = !error;
  if (!error) return;
  const { title, text } = explain(error);
  if (field) field.append(line);
  else find("#composer").prepend(line);
  line.textContent = field ? text : `${title}. ${text}`;
}
