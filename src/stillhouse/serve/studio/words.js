/** Words about a piece. */

/** "pro · 35 steps · 1.2 s", as far as it is known. */
export function facts(piece) {
  const { asked, resolved, seconds } = piece;
  const steps = resolved?.steps ?? asked.steps;
  const many = steps ? `${steps} ${Number(steps) === 1 ? "step" : "steps"}` : null;
  return [many, seconds === null ? null : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`].filter(Boolean).join(" · ");
}

/** What a picture shows, for those who do not see it. */
export function description(piece) {
  const { prompt, model, seed } = piece.asked;
  return `${prompt || "A picture without a prompt"}, drawn by ${model}, seed ${seed}`;
}

/** How a piece stands, in a word or two. */
export function standing(piece) {
  if (piece.state === "asked") return "Asking";
  if (piece.state === "drawing") return piece.looks.length ? "Drawing" : "Waiting for a first look";
  return { done: "Done", failed: "Failed", stopped: "Stopped" }[piece.state];
}

/** The whole request, name by name, as it was drawn. */
export function request(piece) {
  const { asked, resolved, start, mask, degraded } = piece;
  const known = resolved ?? {};
  const size = known.width ? `${known.width} × ${known.height}` : asked.size?.replace("x", " × ");
  return [
    ["Prompt", asked.prompt || "none"],
    ["Model", degraded ? `${asked.model}, drawn as ${degraded}: the server was busy` : asked.model],
    ["Seed", asked.seed],
    ["Steps", known.steps ?? asked.steps],
    ["Guidance", known.guidance ?? asked.guidance],
    ["Sampler", known.sampler ?? asked.sampler],
    ["Size", size],
    ["Without", asked.negative_prompt],
    ["Start", start && (mask ? "a picture, with a mask" : "a picture")],
    ["Strength", start && (known.strength ?? asked.strength)],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
}
