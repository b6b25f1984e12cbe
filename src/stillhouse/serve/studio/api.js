/** The server, asked over HTTP. */

import { credentials } from "./key.js";

/** Why there is no answer. `status` is HTTP's, 0 where nobody answered; `retryAfter` in seconds, or null. */
export class Trouble extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** A response with a good status; throws Trouble, or an AbortError where `signal` says so. */
export async function ask(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...credentials(), ...headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("nobody answers");
  }
  if (!response.ok) throw await troubleOf(response);
  return response;
}

/** What a path says, as JSON. */
export async function read(path, options) {
  return (await ask(path, options)).json();
}

/** Events of a stream of them, as the HTML standard writes them: `{ name, data }`, the data being JSON. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const one = eventOf(block);
        if (one) yield one;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function eventOf(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trim());
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

async function troubleOf(response) {
  const retryAfter = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // Whatever stands between this page and the server may answer in its own words.
  }
  return new Trouble(told.message ?? response.statusText, {
    status: response.status,
    code: told.code ?? null,
    retryAfter: Number.isNaN(retryAfter) ? null : retryAfter,
  });
}
