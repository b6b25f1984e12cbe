/** Error messages for users: what happened, and what to do. */

const REJECTED = {
  queue: "The queue of the server is full.",
  starting: "The server is still starting.",
  draining: "The server is shutting down and accepts no more requests.",
  deadline: "The server is busy, and this image would miss its latency target.",
  rate: "Your key has reached its rate limit.",
  quota: "Your key has used its quota for today.",
};
const FAILED = {
  WorkerDied: "The worker died while generating. It is being restarted.",
  expired: "The request expired in the queue.",
  cancelled: "The request was cancelled.",
  ServerShutdown: "The server was shut down before the image was finished.",
};

/**
 * Explain an error.
 *
 * @returns {{title: string, text: string, remedy: "key" | "again" | "change", wait: number}} `wait` in seconds.
 */
export function explain(error) {
  const { status, code, message } = error;
  const wait = error.retryAfter ?? 0;
  const later = wait ? ` Try again in ${duration(wait)}.` : " Try again in a moment.";
  if (error.name === "AbortError") return explanation("Cancelled", "You cancelled this image.", "again");
  if (status === 401) {
    return explanation("Key required", "This server requires an API key and does not accept yours.", "key");
  }
  if (status === 403) return explanation("Not allowed with this key", sentences(message), "key");
  if (status === 429) return explanation("Server busy", (REJECTED[code] ?? sentences(message)) + later, "again", wait);
  if (status === 503 && REJECTED[code]) return explanation("Server busy", REJECTED[code] + later, "again", wait);
  if (FAILED[code]) return explanation("Request failed", `${FAILED[code]} Try again; the seed is kept.`, "again");
  if (status === 503) return explanation("Server busy", sentences(message) + later, "again", wait);
  if (status === 413) {
    return explanation("File too large", "The server rejects files of this size. Choose a smaller one.", "change");
  }
  if (status >= 400 && status < 500) return explanation("Invalid request", sentences(message), "change");
  if (status >= 500) {
    return explanation("Server error", `${sentences(message)} Try again, or contact the operator.`, "again");
  }
  if (status === 0) {
    return explanation("No connection", "The server cannot be reached. Try again when it is running.", "again");
  }
  return explanation("Error", sentences(message), "again");
}

/** Format a duration in seconds. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.ceil(seconds / 60)} minutes`;
  return `${Math.ceil(seconds / 3600)} hours`;
}

/** Format a server message such as "steps is 0; allowed: 1 to 150; try 8" as sentences. */
export function sentences(message) {
  return message
    .split("; ")
    .filter(Boolean)
    .map((part) => part[0].toUpperCase() + part.slice(1) + (/[.!?]$/.test(part) ? "" : "."))
    .join(" ");
}

function explanation(title, text, remedy, wait = 0) {
  return { title, text, remedy, wait };
}
