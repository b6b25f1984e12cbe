// Light or dark theme. Not a module, because it must run before the first paint.
"use strict";
(() => {
  const STORAGE_KEY = "stillhouse.theme";
  const page = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (page.dataset.theme ? page.dataset.theme === "dark" : system.matches);
  const stored = localStorage.getItem(STORAGE_KEY);
  if (stored === "light" || stored === "dark") page.dataset.theme = stored;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const show = () => button.setAttribute("aria-checked", String(isDark()));
    button.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      // A choice equal to the system's is not stored, so that the page keeps following the system.
      if ((theme === "dark") === system.matches) {
        delete page.dataset.theme;
        localStorage.removeItem(STORAGE_KEY);
      } else {
        page.dataset.theme = theme;
        localStorage.setItem(STORAGE_KEY, theme);
      }
      show();
    });
    system.addEventListener("change", show);
    show();
  });
})();
