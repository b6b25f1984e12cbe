/** Engine status: an indicator at the top of the page and a panel with the unfinished requests. */

import { fetchJson } from "./api.js";
import { find, make } from "./element.js";
import { allItems, isDone, onItems } from "./items.js";

/** Polling interval in milliseconds: while items are unfinished or the panel is open, and otherwise. */
const ACTIVE_MS = 600;
const IDLE_MS = 4000;
const NAMES = {
  ready: "Ready",
  starting: "Starting",
  draining: "Shutting down",
  gone: "No connection",
  locked: "Key required",
};
const EMPTY = { running: 0, waiting: 0, pending_seconds: 0, requests: [], workers: [], policy: null };

let timer = 0;
let isAuthenticated = false;

/** Poll while the page is visible and the key is accepted. */
export function openEngine() {
  find("#engine-panel").addEventListener("toggle", poll);
  document.addEventListener("visibilitychange", poll);
  onItems((change) => change === "added" && poll());
}

/** Start or stop polling; the state requires an accepted key. */
export function setAuthenticated(isAccepted) {
  isAuthenticated = isAccepted;
  if (isAccepted) poll();
  else show({ ...EMPTY, status: "locked" });
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || !isAuthenticated) return;
  const isActive = find("#engine-panel").matches(":popover-open") || !allItems().every(isDone);
  show(await fetchState());
  clearTimeout(timer);
  timer = setTimeout(poll, isActive ? ACTIVE_MS : IDLE_MS);
}

async function fetchState() {
  try {
    return await fetchJson("/v1/state");
  } catch (error) {
    return { ...EMPTY, status: error.status === 401 ? "locked" : "gone" };
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
    ...term("Pending work", `${state.pending_seconds.toFixed(1)} s`),
    ...(state.policy ? term("Policy", state.policy) : []),
  );
  find("#engine-queue").replaceChildren(...state.requests.map(row));
  find("#engine-idle").hidden = state.requests.length > 0;
}

function row(request) {
  const share = request.evaluations ? request.index / request.evaluations : 0;
  const tier = request.effective_tier === request.tier ? "" : ` as ${request.effective_tier}`;
  const status = request.index ? `${request.index} of ${request.evaluations}` : "waiting";
  const late = request.seconds > request.latency_target ? ", late" : "";
  const time = `${request.seconds.toFixed(1)} s of ${request.latency_target.toFixed(1)} s target${late}`;
  return make(
    "li",
    {},
    make("span", {}, `${request.tier}${tier}, ${request.size.replace("x", " × ")}`),
    make("span", { class: "soft" }, status),
    make("progress", { max: 1, value: share, "aria-label": `${request.tier}, ${status}` }),
    make("span", { class: "soft" }, time),
  );
}

function term(name, value) {
  return [make("dt", {}, name), make("dd", {}, value)];
}
