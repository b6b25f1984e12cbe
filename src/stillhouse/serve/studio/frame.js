/** A frame: one piece on the stage, from noise over previews to the picture, with what can be done with it. */

import { button, make, makeShape } from "./element.js";
import { paintNoise } from "./noise.js";
import { share } from "./progress.js";
import { duration, explain } from "./trouble.js";
import { description, facts, request, standing } from "./words.js";

/** `{ piece, element, update, breathe }`: update when the piece changed, breathe as time passes. */
export function frame(piece, acts, { isOneOfSeveral }) {
  const looks = make("div", { class: "looks" });
  const ring = newRing();
  const trouble = make("div", { class: "trouble", role: "alert" });
  const picture = make("div", { class: "picture" }, looks, ring.element, trouble);
  const caption = make("figcaption", {});
  const element = make("figure", { class: "frame", tabindex: -1, "data-model": piece.asked.model }, picture, caption);
  let shown = null;
  let told = null;
  let wait = null;

  const noise = make("canvas", { class: "noise", "aria-hidden": "true" });
  paintNoise(noise, piece.asked.seed);
  looks.append(noise);
  proportion(element, piece);

  return { piece, element, update, breathe };

  function update() {
    element.dataset.state = piece.state;
    proportion(element, piece);
    if (piece.look && piece.look !== shown) reveal((shown = piece.look));
    ring.element.hidden = !isDrawing();
    looks.hidden = piece.state === "failed" || piece.state === "cancelled";
    complain();
    if (told !== chapter()) tellAgain();
    breathe();
  }

  function breathe() {
    if (!ring.element.hidden) ring.show(share(piece), standing(piece));
    wait?.();
  }

  function reveal(look) {
    const image = make("img", { alt: description(piece), src: look });
    image.decode().then(place, place);

    function place() {
      if (look !== shown) return;
      looks.append(image);
      image.addEventListener("animationend", () => older(image).forEach((one) => one.remove()), { once: true });
    }
  }

  function older(image) {
    const images = [...looks.querySelectorAll("img")];
    return images.slice(0, images.indexOf(image));
  }

  function complain() {
    trouble.hidden = piece.state !== "failed" && piece.state !== "cancelled";
    if (trouble.hidden || trouble.childElementCount) return;
    const { title, text, remedy, wait: seconds } = explain(piece.trouble ?? { name: "AbortError" });
    const again = button("Try again", () => acts.retry(piece), { class: "plain" });
    if (seconds) wait = countdown(again, seconds);
    trouble.replaceChildren(
      make("p", { class: "trouble-title" }, title),
      make("p", {}, text),
      make(
        "div",
        { class: "actions" },
        remedy === "key" && button("Enter a key", () => acts.key(), { class: "plain" }),
        remedy === "change" && button("Change it", () => acts.mend(piece), { class: "plain" }),
        remedy !== "change" && again,
        button("Dismiss", () => acts.remove(piece), { class: "link" }),
      ),
    );
  }

  /** What the caption depends on. */
  function chapter() {
    return [isDrawing() ? "running" : piece.state, piece.degraded].join();
  }

  /** Whoever is at one of its buttons is led to the frame, and not to a button that does something else. */
  function tellAgain() {
    const isHere = caption.contains(document.activeElement);
    told = chapter();
    caption.replaceChildren(...captionOf());
    if (isHere) element.focus();
  }

  function isDrawing() {
    return piece.state === "queued" || piece.state === "running";
  }

  function captionOf() {
    const { model, seed } = piece.asked;
    const who = make("p", { class: "who" }, make("strong", {}, model), " ", make("span", {}, facts(piece)));
    const degraded = piece.degraded && make("p", { class: "soft" }, `Generated as ${piece.degraded}: the server was busy.`);
    return [
      isOneOfSeveral ? null : titleOf(piece),
      make("div", { class: "caption" }, who, !isOneOfSeveral && make("p", { class: "soft" }, `seed ${seed}`)),
      degraded,
      isDrawing() && make("div", { class: "actions" }, button("Stop", () => acts.stop(piece), { class: "plain" })),
      piece.state === "done" && done(),
    ].filter(Boolean);
  }

  function done() {
    const name = `stillhouse-${piece.asked.model}-${piece.asked.seed}.${piece.file.type.split("/")[1]}`;
    const rows = request(piece).flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, String(value))]);
    return make(
      "div",
      {},
      make(
        "div",
        { class: "actions" },
        button("Again", () => acts.again(piece), { class: "plain", title: "The same request once more" }),
        button("Vary", () => acts.vary(piece), { class: "plain", title: "The same request with another seed" }),
        button("Start from it", () => acts.start(piece), { class: "plain", title: "Change it, or a part of it" }),
        make("a", { class: "plain", href: piece.look, download: name }, "Save"),
      ),
      make(
        "details",
        {},
        make("summary", {}, "The whole request"),
        make("dl", { class: "request" }, rows),
        make(
          "div",
          { class: "actions" },
          button("Put it into the form", () => acts.take(piece), { class: "link" }),
          button("Remove the picture", () => acts.remove(piece), { class: "link" }),
        ),
      ),
    );
  }
}

/** The prompt, as the title of what came of it. */
export function titleOf({ asked }) {
  return make("h2", { class: asked.prompt ? "title" : "title soft" }, asked.prompt || "Without a prompt");
}

function proportion(frame, { asked, resolved, shape }) {
  const size = resolved ? `${resolved.width}x${resolved.height}` : (asked.size ?? shape);
  const [width, height] = (size ?? "").split("x").map(Number);
  if (width && height) frame.style.setProperty("--ratio", width / height);
}

function newRing() {
  const bar = makeShape("circle", { class: "bar", cx: 20, cy: 20, r: 16, pathLength: 100 });
  const told = make("span", {});
  const whole = makeShape("circle", { cx: 20, cy: 20, r: 16 });
  const drawing = makeShape("svg", { viewBox: "0 0 40 40", "aria-hidden": "true" }, whole, bar);
  const said = { role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 };
  const element = make("div", { class: "ring", ...said }, drawing, told);
  return {
    element,
    show(part, words) {
      bar.style.strokeDasharray = `${100 * part} 100`;
      element.setAttribute("aria-valuenow", String(Math.round(100 * part)));
      if (told.textContent !== words) told.textContent = words;
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
