/** Trouble, told in sentences: what happened, and what one can do. */

const BUSY = {
  queue: "Many pictures are waiting already.",
  starting: "The engine is still warming up.",
  draining: "The server is being shut down and takes no more pictures.",
  deadline: "The server is busy, and this picture would come later than promised.",
  rate: "Your key has asked for as much as it may, for the moment.",
  quota: "Your key has used what it may ask for today.",
};
const GONE = {
  WorkerDied: "The engine broke down while generating. It is being started again.",
  expired: "The picture could not be begun in time.",
  cancelled: "Somebody stopped this picture.",
  ServerShutdown: "The server was shut down before the picture was done.",
};

/**
 * What a person is told.
 *
 * @returns {{title: string, text: string, remedy: "key" | "again" | "change", wait: number}} `wait` in seconds.
 */
export function explain(trouble) {
  const { status, code, message } = trouble;
  const wait = trouble.retryAfter ?? 0;
  const later = wait ? ` Come back in ${duration(wait)}.` : " Try again in a moment.";
  if (trouble.name === "AbortError") return told("Stopped", "You stopped this picture.", "again");
  if (status === 401) {
    return told("A key, please", "This server requires an API key and does not accept yours.", "key");
  }
  if (status === 403) return told("Not with this key", sentences(message), "key");
  if (status === 429) return told("Not just now", (BUSY[code] ?? sentences(message)) + later, "again", wait);
  if (status === 503 && BUSY[code]) return told("Not just now", BUSY[code] + later, "again", wait);
  if (GONE[code]) return told("No picture came of it", `${GONE[code]} Try again; the seed is kept.`, "again");
  if (status === 503) return told("Not just now", sentences(message) + later, "again", wait);
  if (status === 413) {
    return told("Too large", "The server takes no file of that size. Choose a smaller one.", "change");
  }
  if (status >= 400 && status < 500) return told("Invalid request", sentences(message), "change");
  if (status >= 500) {
    return told("A mistake of the server", `${sentences(message)} Try again; if it stays, tell who runs it.`, "again");
  }
  if (status === 0) {
    return told("Nobody answers", "The server cannot be reached. Is it running? Then try again.", "again");
  }
  return told("Something went wrong", sentences(message), "again");
}

/** Seconds, as people say them. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.ceil(seconds / 60)} minutes`;
  return `${Math.ceil(seconds / 3600)} hours`;
}

/** "steps is 0; allowed: 1 to 150; try 8" as sentences. */
export function sentences(message) {
  return message
    .split("; ")
    .filter(Boolean)
    .map((part) => part[0].toUpperCase() + part.slice(1) + (/[.!?]$/.test(part) ? "" : "."))
    .join(" ");
}

function told(title, text, remedy, wait = 0) {
  return { title, text, remedy, wait };
}
