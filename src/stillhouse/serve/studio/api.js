/** HTTP access to the server. */

import { credentials } from "./key.js";

/** A failed request. `status` is the HTTP status, 0 without a response; `retryAfter` is in seconds, or null. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/**
 * Fetch a path and return the response if its status is 2xx. Throws ApiError, or an AbortError when aborted.
 *
 * @param {string} path
 * @param {RequestInit} options
 */
export async function fetchOk(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...credentials(), ...headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("no connection");
  }
  if (!response.ok) throw await readError(response);
  return response;
}

/** Fetch a path as JSON. */
export async function fetchJson(path) {
  return (await fetchOk(path)).json();
}

/** The server-sent events of a response: `{ name, data }`, with JSON data. */
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
        const event = parseEvent(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trim());
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

async function readError(response) {
  const retryAfter = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Proxies may answer without JSON.
  }
  return new ApiError(error.message ?? response.statusText, {
    status: response.status,
    code: error.code ?? null,
    retryAfter: Number.isNaN(retryAfter) ? null : retryAfter,
  });
}
