/** The engine as it is now: a light at the top of the page, and behind it what is drawn and what waits. */

import { read } from "./api.js";
import { find, make } from "./element.js";
import { all, isOver, watch } from "./pieces.js";

/** Milliseconds between two looks: while something of ours is drawn or the panel is open, and else. */
const OFTEN = 600;
const SELDOM = 4000;
const NAMES = { ready: "Ready", starting: "Warming up", draining: "Closing", gone: "No answer", locked: "Wants a key" };
const NOTHING = { running: 0, waiting: 0, pending_seconds: 0, requests: [], workers: [], policy: null };

let timer = 0;
let isAllowed = false;

/** Look as long as the page is seen, and the server lets us. */
export function openEngine() {
  find("#engine-panel").addEventListener("toggle", look);
  document.addEventListener("visibilitychange", look);
  watch((what) => what === "added" && look());
}

/** Look, or look no more: without a key that is known there is nothing to see. */
export function allow(isKnown) {
  isAllowed = isKnown;
  if (isKnown) look();
  else show({ ...NOTHING, status: "locked" });
}

async function look() {
  clearTimeout(timer);
  if (document.hidden || !isAllowed) return;
  const isNear = find("#engine-panel").matches(":popover-open") || !all().every(isOver);
  show(await stateNow());
  clearTimeout(timer);
  timer = setTimeout(look, isNear ? OFTEN : SELDOM);
}

async function stateNow() {
  try {
    return await read("/v1/state");
  } catch (trouble) {
    return { ...NOTHING, status: trouble.status === 401 ? "locked" : "gone" };
  }
}

function show(state) {
  const light = find("#engine");
  light.dataset.status = state.status;
  const counts = { running: state.running, waiting: state.waiting };
  const busy = Object.entries(counts).flatMap(([name, count]) => (count ? [`${count} ${name}`] : []));
  const isPlain = state.status === "ready" && busy.length > 0;
  find("#engine-words").textContent = [isPlain ? null : NAMES[state.status], ...busy].filter(Boolean).join(" · ");
  if (!find("#engine-panel").matches(":popover-open")) return;
  const ready = state.workers.filter((worker) => worker.ready).length;
  find("#engine-facts").replaceChildren(
    ...term("Engine", NAMES[state.status]),
    ...term("Workers", `${ready} of ${state.workers.length} ready`),
    ...term("Work ahead", `${state.pending_seconds.toFixed(1)} s`),
    ...(state.policy ? term("Order of work", state.policy) : []),
  );
  find("#engine-queue").replaceChildren(...state.requests.map(row));
  find("#engine-idle").hidden = state.requests.length > 0;
}

function row(request) {
  const share = request.evaluations ? request.index / request.evaluations : 0;
  const how = request.effective_tier === request.tier ? "" : ` as ${request.effective_tier}`;
  const stands = request.index ? `${request.index} of ${request.evaluations}` : "waiting";
  const late = request.seconds > request.latency_target ? ", late" : "";
  const time = `${request.seconds.toFixed(1)} s of ${request.latency_target.toFixed(1)} s target${late}`;
  return make(
    "li",
    {},
    make("span", {}, `${request.tier}${how}, ${request.size.replace("x", " × ")}`),
    make("span", { class: "soft" }, stands),
    make("progress", { max: 1, value: share, "aria-label": `${request.tier}, ${stands}` }),
    make("span", { class: "soft" }, time),
  );
}

function term(name, value) {
  return [make("dt", {}, name), make("dd", {}, value)];
}
