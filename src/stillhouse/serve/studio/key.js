/** API key: entered in a dialog, kept in this tab only, sent with every request. */

import { find } from "./element.js";

const STORAGE_KEY = "stillhouse.key";

/** Headers with the key; empty without one. */
export function credentials() {
  const key = sessionStorage.getItem(STORAGE_KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Initialise the dialog; `changed` is called when the key changes. */
export function watchKey(changed) {
  const dialog = find("#key-dialog");
  const field = find("#key");
  const form = find("form", dialog);
  const forget = find("#forget-key");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    saveKey(field.value.trim());
  });
  forget.addEventListener("click", () => saveKey(""));
  find("#leave-key").addEventListener("click", () => dialog.close());
  find("#open-key").addEventListener("click", () => askKey());
  mark();

  function saveKey(key) {
    if (key) sessionStorage.setItem(STORAGE_KEY, key);
    else sessionStorage.removeItem(STORAGE_KEY);
    field.value = "";
    dialog.close();
    mark();
    changed();
  }

  function mark() {
    const hasKey = Boolean(sessionStorage.getItem(STORAGE_KEY));
    find("#open-key").dataset.kept = String(hasKey);
    forget.hidden = !hasKey;
  }
}

/** Open the dialog, with a reason if there is one. */
export function askKey(reason = "") {
  find("#key-why").textContent = reason;
  find("#key-why").hidden = !reason;
  const dialog = find("#key-dialog");
  if (!dialog.open) dialog.showModal();
}
