/** The studio: asks the server what it has, and puts the parts of the page together. */

import { read } from "./api.js";
import { anySeed, asked, fill, mend, model, offer, openComposer } from "./composer.js";
import { draw } from "./draw.js";
import { find, say } from "./element.js";
import { allow, openEngine } from "./engine.js";
import { mark, openGallery } from "./gallery.js";
import { askKey, watchKey } from "./key.js";
import { add, newName, newPiece, recall, remove, together, watch } from "./pieces.js";
import { learn } from "./progress.js";
import { offerReports } from "./reports.js";
import { clear, onStage, openStage, show } from "./stage.js";
import { setStart, setStrength, start, watchStart } from "./start.js";
import { explain } from "./trouble.js";
import { standing } from "./words.js";

/** Example prompts that are shown at once. */
const FEW = 3;

let examples = [];

const acts = {
  begin(prompt) {
    fill({ prompt });
    submit();
  },
  again: (piece) => drawAll([likeness(piece, { asked: faithful(piece) })]),
  vary: (piece) => drawAll([likeness(piece, { asked: { ...faithful(piece), seed: String(anySeed()) } })]),
  retry(piece) {
    const { asked, group, place, when } = piece;
    remove([piece]);
    drawAll([likeness(piece, { asked, group, place, when })]);
  },
  stop: (piece) => piece.abort.abort(),
  remove: (piece) => remove([piece]),
  key: () => askKey(),
  mend: (piece) => notice(piece.trouble, mend(piece.trouble.message)),
  select(piece) {
    put(together(piece));
    find("#stage").scrollIntoView({ block: "start" });
  },
  async start(piece) {
    await setStart(piece.file);
    if (!find("#prompt").value.trim()) fill({ prompt: piece.asked.prompt });
    find("#prompt").focus();
  },
  async take(piece) {
    const { strength, size, ...fields } = faithful(piece);
    const [width, height] = (size ?? "x").split("x");
    fill({ steps: "", guidance: "", sampler: "", negative_prompt: "", ...fields, width, height });
    await setStart(piece.start, piece.mask);
    setStrength(strength);
    find("#prompt").focus();
  },
};

openComposer(submit);
openStage(acts, () => examples);
openGallery(acts);
openEngine();
watchStart(
  () => sizeOf(model()),
  () => find("#start-mask").focus(),
);
watchKey(meet);
watch(follow);
find("#suggest").addEventListener("click", () => {
  fill({ prompt: examplesOf(model())[anySeed() % examplesOf(model()).length] });
  find("#prompt").focus();
});
find("#composer").addEventListener("change", suggest);
await meet();
await recall();
if (!onStage().length) clear();

/** Ask the server who we are to it, and what it has. */
async function meet() {
  let facts = null;
  try {
    facts = await read("/v1/studio");
    find("#version").textContent = facts.version;
    find("#open-key").hidden = !facts.requires_key;
    allow(facts.is_authenticated);
    if (!facts.is_authenticated) {
      offer([], facts.samplers);
      askKey(facts.reason);
      return;
    }
    const { data } = await read("/v1/models");
    const models = data.map((one) => ({ ...one, ...facts.models[one.id] }));
    offer(models, facts.samplers);
    offerReports(models);
    notice(null);
  } catch (trouble) {
    allow(true);
    notice(trouble);
    return;
  }
  suggest();
  if (!onStage().length) clear();
}

/** Draw what the form asks for. */
async function submit() {
  const from = start();
  let requests = [];
  try {
    requests = asked({ hasStart: Boolean(from.start) });
    if (!requests.length) await meet();
  } catch (trouble) {
    notice(trouble, trouble.status === 400 ? mend(trouble.message) : null);
    return;
  }
  notice(null);
  const group = newName();
  const when = Date.now();
  const shape = from.shape ?? model()?.size;
  drawAll(requests.map((request, place) => newPiece({ ...from, asked: request, shape, group, place, when })));
}

/** A new piece that starts from the same as an old one. */
function likeness({ start, mask, shape }, given) {
  return newPiece({ start, mask, shape, ...given });
}

/** Put new pieces on the stage and draw them. */
function drawAll(pieces) {
  if (!pieces.length) return;
  add(pieces);
  put(together(pieces[0]));
  if (matchMedia("(max-width: 899px)").matches) find("#stage").scrollIntoView({ block: "start" });
  say(pieces.length > 1 ? `Generating ${pieces.length} images.` : "Generating.");
  for (const piece of pieces) draw(piece);
}

function put(pieces) {
  show(pieces);
  mark(pieces);
}

/** The request as it was drawn, so that the same picture comes of it even where the model's own ways have changed. */
function faithful({ asked, resolved, degraded }) {
  if (!resolved || degraded) return { ...asked };
  const { steps, guidance, sampler } = resolved;
  return { ...asked, steps: String(steps), guidance: String(guidance), sampler };
}

function follow(what, pieces) {
  if (what !== "changed") return;
  for (const piece of pieces) {
    learn(piece);
    const { model, seed } = piece.asked;
    if (piece.state === "done") say(`Generated by ${model} in ${piece.seconds.toFixed(1)} seconds, seed ${seed}.`);
    else if (piece.looks.length === 1) say(`${standing(piece)}: first preview.`);
  }
}

function suggest() {
  examples = examplesOf(model()).slice(0, FEW);
  find("#suggest").hidden = examples.length === 0;
}

function examplesOf(one) {
  return one?.examples ?? [];
}

function sizeOf(one) {
  if (!one) return null;
  const [width, height] = one.size.split("x").map(Number);
  return { area: width * height, granularity: one.granularity };
}

/** Say what is wrong with a field, or above the form what is wrong with the server; null says nothing. */
function notice(trouble, field = null) {
  const line = find("#notice");
  line.hidden = !trouble;
  if (!trouble) return;
  const { title, text } = explain(trouble);
  if (field) field.append(line);
  else find("#composer").prepend(line);
  line.textContent = field ? text : `${title}. ${text}`;
}
