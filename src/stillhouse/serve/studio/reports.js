/** Acceleration reports: links and a dialog. */

import { button, find, make } from "./element.js";

/** Show links to the reports of models, or how to create model. */
export function offerReports(models) {
  const withReport = models.filter((model) => model.report);
  find("#no-report").hidden = withReport.length > 0;
  const links = withReport.map((model) => button(model.id, () => open(model.id), { class: "link" }));
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
