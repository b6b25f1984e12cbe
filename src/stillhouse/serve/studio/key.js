/** The API key: asked for in a dialog, kept in this tab only, sent with every request. */

import { find } from "./element.js";

const PLACE = "stillhouse.key";

/** What requests carry; nothing where there is no key. */
export function credentials() {
  const key = sessionStorage.getItem(PLACE);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Let the key be changed; `changed` is called when it was. */
export function watchKey(changed) {
  const dialog = find("#key-dialog");
  const field = find("#key");
  const form = find("form", dialog);
  const forget = find("#forget-key");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keep(field.value.trim());
  });
  forget.addEventListener("click", () => keep(""));
  find("#leave-key").addEventListener("click", () => dialog.close());
  find("#open-key").addEventListener("click", () => askKey());
  mark();

  function keep(key) {
    if (key) sessionStorage.setItem(PLACE, key);
    else sessionStorage.removeItem(PLACE);
    field.value = "";
    dialog.close();
    mark();
    changed();
  }

  function mark() {
    const isThere = Boolean(sessionStorage.getItem(PLACE));
    find("#open-key").dataset.kept = String(isThere);
    forget.hidden = !isThere;
  }
}

/** Ask for a key. */
export function askKey(why = "") {
  find("#key-why").textContent = why;
  find("#key-why").hidden = !why;
  const dialog = find("#key-dialog");
  if (!dialog.open) dialog.showModal();
}
