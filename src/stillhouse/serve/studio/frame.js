/** Frame: one item on the stage, from noise over previews to the image, with its actions. */

import { button, make, makeShape } from "./element.js";
import { paintNoise } from "./noise.js";
import { progressOf } from "./progress.js";
import { duration, explain } from "./errors.js";
import { description, facts, requestRows, statusText } from "./labels.js";

/** `{ item, element, update, refreshProgress }`: call `update` when the item changes, `refreshProgress` over time. */
export function frame(item, actions, { isOneOfSeveral }) {
  const images = make("div", { class: "looks" });
  const ring = newRing();
  const errorBox = make("div", { class: "trouble", role: "alert" });
  const picture = make("div", { class: "picture" }, images, ring.element, errorBox);
  const caption = make("figcaption", {});
  const element = make("figure", { class: "frame", tabindex: -1, "data-model": item.request.model }, picture, caption);
  let shown = null;
  let captionKey = null;
  let wait = null;

  const noise = make("canvas", { class: "noise", "aria-hidden": "true" });
  paintNoise(noise, item.request.seed);
  images.append(noise);
  setAspectRatio(element, item);

  return { item, element, update, refreshProgress };

  function update() {
    element.dataset.state = item.state;
    setAspectRatio(element, item);
    if (item.imageUrl && item.imageUrl !== shown) showImage((shown = item.imageUrl));
    ring.element.hidden = !isActive();
    images.hidden = item.state === "failed" || item.state === "cancelled";
    showError();
    if (captionKey !== captionState()) updateCaption();
    refreshProgress();
  }

  function refreshProgress() {
    if (!ring.element.hidden) ring.show(progressOf(item), statusText(item));
    wait?.();
  }

  function showImage(url) {
    const image = make("img", { alt: description(item), src: url });
    image.decode().then(place, place);

    function place() {
      if (url !== shown) return;
      images.append(image);
      image.addEventListener("animationend", () => olderImages(image).forEach((old) => old.remove()), { once: true });
    }
  }

  function olderImages(image) {
    const all = [...images.querySelectorAll("img")];
    return all.slice(0, all.indexOf(image));
  }

  function showError() {
    errorBox.hidden = item.state !== "failed" && item.state !== "cancelled";
    if (errorBox.hidden || errorBox.childElementCount) return;
    const { title, text, remedy, wait: seconds } = explain(item.error ?? { name: "AbortError" });
    const again = button("Try again", () => actions.retry(item), { class: "plain" });
    if (seconds) wait = countdown(again, seconds);
    errorBox.replaceChildren(
      make("p", { class: "trouble-title" }, title),
      make("p", {}, text),
      make(
        "div",
        { class: "actions" },
        remedy === "key" && button("Enter a key", () => actions.key(), { class: "plain" }),
        remedy === "change" && button("Change it", () => actions.mend(item), { class: "plain" }),
        remedy !== "change" && again,
        button("Dismiss", () => actions.remove(item), { class: "link" }),
      ),
    );
  }

  /** The state that the caption depends on. */
  function captionState() {
    return [isActive() ? "running" : item.state, item.degradedTo].join();
  }

  /** Replace the caption. If one of its buttons has the focus, the frame gets it, not a different button. */
  function updateCaption() {
    const hasFocus = caption.contains(document.activeElement);
    captionKey = captionState();
    caption.replaceChildren(...captionOf());
    if (hasFocus) element.focus();
  }

  function isActive() {
    return item.state === "queued" || item.state === "running";
  }

  function captionOf() {
    const { model, seed } = item.request;
    const summary = make("p", { class: "who" }, make("strong", {}, model), " ", make("span", {}, facts(item)));
    const note = `Generated as ${item.degradedTo}: the server was busy.`;
    const degraded = item.degradedTo && make("p", { class: "soft" }, note);
    return [
      isOneOfSeveral ? null : titleOf(item),
      make("div", { class: "caption" }, summary, !isOneOfSeveral && make("p", { class: "soft" }, `seed ${seed}`)),
      degraded,
      isActive() && make("div", { class: "actions" }, button("Stop", () => actions.stop(item), { class: "plain" })),
      item.state === "done" && done(),
    ].filter(Boolean);
  }

  function done() {
    const name = `stillhouse-${item.request.model}-${item.request.seed}.${item.file.type.split("/")[1]}`;
    const rows = requestRows(item).flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, String(value))]);
    return make(
      "div",
      {},
      make(
        "div",
        { class: "actions" },
        button("Again", () => actions.again(item), { class: "plain", title: "The same request once more" }),
        button("Vary", () => actions.vary(item), { class: "plain", title: "The same request with another seed" }),
        button("Start from it", () => actions.start(item), { class: "plain", title: "Use it as input image" }),
        make("a", { class: "plain", href: item.imageUrl, download: name }, "Save"),
      ),
      make(
        "details",
        {},
        make("summary", {}, "The whole request"),
        make("dl", { class: "request" }, rows),
        make(
          "div",
          { class: "actions" },
          button("Put it into the form", () => actions.take(item), { class: "link" }),
          button("Remove the image", () => actions.remove(item), { class: "link" }),
        ),
      ),
    );
  }
}

/** The prompt as a title. */
export function titleOf({ request }) {
  return make("h2", { class: request.prompt ? "title" : "title soft" }, request.prompt || "Without a prompt");
}

function setAspectRatio(frame, { request, resolved, shape }) {
  const size = resolved ? `${resolved.width}x${resolved.height}` : (request.size ?? shape);
  const [width, height] = (size ?? "").split("x").map(Number);
  if (width && height) frame.style.setProperty("--ratio", width / height);
}

function newRing() {
  const bar = makeShape("circle", { class: "bar", cx: 20, cy: 20, r: 16, pathLength: 100 });
  const label = make("span", {});
  const whole = makeShape("circle", { cx: 20, cy: 20, r: 16 });
  const drawing = makeShape("svg", { viewBox: "0 0 40 40", "aria-hidden": "true" }, whole, bar);
  const attributes = { role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 };
  const element = make("div", { class: "ring", ...attributes }, drawing, label);
  return {
    element,
    show(part, words) {
      bar.style.strokeDasharray = `${100 * part} 100`;
      element.setAttribute("aria-valuenow", String(Math.round(100 * part)));
      if (label.textContent !== words) label.textContent = words;
    },
  };
}

function countdown(again, seconds) {
  const until = performance.now() + 1000 * seconds;
  return () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    again.textContent = left > 0 ? `Try again (in ${duration(left)})` : "Try again";
  };
}
