/** Acceleration reports of those pipelines that have one: a link, and a look at them without leaving the page. */

import { button, find, make } from "./element.js";

/** Offer the reports of these models; where there are none, say what makes one. */
export function offerReports(models) {
  const having = models.filter((one) => one.report);
  find("#no-report").hidden = having.length > 0;
  const links = having.map((one) => button(one.id, () => open(one.id), { class: "link" }));
  find("#report-list").replaceChildren(...links.map((link) => make("li", {}, link)));
}

function open(name) {
  const address = `/studio/report.html?model=${encodeURIComponent(name)}`;
  const dialog = find("#report-dialog");
  find("#report-title").textContent = `How ${name} was accelerated`;
  find("#report-alone").href = address;
  find("#report-frame").src = address;
  dialog.addEventListener("close", () => find("#report-frame").removeAttribute("src"), { once: true });
  dialog.showModal();
}
