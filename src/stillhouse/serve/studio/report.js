/** A pipeline's report on a page of its own: fetched with the key of this tab, shown where no script can run. */

import { ask } from "./api.js";
import { find } from "./element.js";
import { explain } from "./trouble.js";

const name = new URLSearchParams(location.search).get("model") ?? "";

try {
  const response = await ask(`/v1/models/${encodeURIComponent(name)}/report`);
  document.title = `${name} · report · Stillhouse`;
  find("#report").srcdoc = await response.text();
  find("#report").hidden = false;
} catch (trouble) {
  const { title, text } = explain(trouble);
  find("#trouble").textContent = `${title}. ${text}`;
  find("#trouble").hidden = false;
}
