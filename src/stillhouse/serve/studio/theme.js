// Light or dark. Not a module: it must have run before the page is painted.
"use strict";
(() => {
  const PLACE = "stillhouse.theme";
  const page = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (page.dataset.theme ? page.dataset.theme === "dark" : system.matches);
  const kept = localStorage.getItem(PLACE);
  if (kept === "light" || kept === "dark") page.dataset.theme = kept;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const show = () => button.setAttribute("aria-checked", String(isDark()));
    button.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      // What the system says anyway need not be remembered, so that the page goes on following it.
      if ((theme === "dark") === system.matches) {
        delete page.dataset.theme;
        localStorage.removeItem(PLACE);
      } else {
        page.dataset.theme = theme;
        localStorage.setItem(PLACE, theme);
      }
      show();
    });
    system.addEventListener("change", show);
    show();
  });
})();
