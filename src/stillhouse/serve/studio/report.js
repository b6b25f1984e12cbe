/** Page of an acceleration report: fetched with the key of this tab, shown in a sandbox without scripts. */

import { fetchOk } from "./api.js";
import { find } from "./element.js";
import { explain } from "./errors.js";

const name = new URLSearchParams(location.search).get("model") ?? "";

try {
  const response = await fetchOk(`/v1/models/${encodeURIComponent(name)}/report`);
  document.title = `${name} · report · Stillhouse`;
  find("#report").srcdoc = await response.text();
  find("#report").hidden = false;
} catch (error) {
  const { title, text } = explain(error);
  find("#trouble").textContent = `${title}. ${text}`;
  find("#trouble").hidden = false;
}
