/** The API for readers: every operation of /docs/openapi.json, by tag. */

import { read } from "./api.js";
import { find, make } from "./element.js";
import { exampleOf, fieldsOf, noteOf, typeOf } from "./schema.js";
import { explain } from "./trouble.js";

const VERBS = ["get", "post", "put", "patch", "delete", "head", "options"];
const ELSE = "Other";

try {
  show(await read("/docs/openapi.json"));
} catch (trouble) {
  find("#lead").textContent = explain(trouble).text;
}

function show(document) {
  const groups = grouped(document);
  const count = [...groups.values()].flat().length;
  find("#lead").replaceChildren(
    `${document.info.title} ${document.info.version} has ${count} operations at `,
    make("code", {}, location.origin),
    ". Where keys are needed, send one as ",
    make("code", {}, "Authorization: Bearer KEY"),
    ".",
  );
  for (const [name, operations] of groups) {
    const titles = operations.map((one) => one.title);
    const first = operations.filter((one, number) => titles.indexOf(one.title) === number);
    const links = first.map((one) => make("a", { href: `#${one.id}` }, one.title));
    find("#contents").append(make("div", {}, make("h2", {}, name), ...links));
    find("#operations").append(
      make("section", { class: "group" }, make("h2", {}, name), ...operations.map((one) => sectionOf(document, one))),
    );
  }
  if (location.hash) find(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView();
}

function grouped(document) {
  const groups = new Map();
  for (const [path, item] of Object.entries(document.paths)) {
    for (const verb of VERBS.filter((one) => item[one])) {
      const operation = item[verb];
      const tag = operation.tags?.[0] ?? ELSE;
      const id = `${verb}${path.replace(/\W+/g, "-")}`.replace(/-$/, "");
      const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ ...operation, verb, path, id, parameters, title: operation.summary ?? path });
    }
  }
  return groups;
}

function sectionOf(document, one) {
  return make(
    "article",
    { class: "operation", id: one.id },
    make("h3", {}, one.title),
    make("p", { class: "endpoint" }, make("span", { class: "verb" }, one.verb.toUpperCase()), make("code", {}, one.path)),
    one.description && make("p", { class: "caption" }, ...coded(one.description)),
    ...parameters(document, one),
    ...bodies(document, one),
    ...answers(one),
    example(document, one),
  );
}

function parameters(document, { parameters: given }) {
  if (!given.length) return [];
  const rows = given.map((one) => {
    const note = one.description ?? noteOf(document, one.schema);
    return row(one.name, `in the ${one.in}`, one.required, [typeOf(document, one.schema), note]);
  });
  return [make("h4", {}, "Parameters"), make("dl", { class: "fields" }, rows)];
}

function bodies(document, { requestBody }) {
  return Object.entries(requestBody?.content ?? {}).flatMap(([type, { schema }]) => {
    const fields = fieldsOf(document, schema);
    const rows = fields.map((one) => row(one.name, "", one.isNeeded, [one.type, one.note]));
    return [make("h4", {}, "Body ", make("code", { class: "soft" }, type)), make("dl", { class: "fields" }, rows)];
  });
}

function row(name, place, isNeeded, texts) {
  const marks = [place, isNeeded && "needed"].filter(Boolean).join(", ");
  const term = make("dt", {}, make("code", {}, name), " ", make("span", { class: "needed" }, marks));
  const kind = isNeeded ? texts[0] : texts[0].replace(/, or nothing$/, "");
  return make("div", {}, term, make("dd", {}, ...coded([kind, texts[1]].filter(Boolean).join("; "))));
}

function answers({ responses = {} }) {
  const list = Object.entries(responses).map(([status, { description }]) =>
    make("li", {}, make("b", {}, status), ` ${description ?? ""}`),
  );
  return [make("h4", {}, "Answers"), make("ul", { class: "answers" }, list)];
}

function example(document, { verb, path, requestBody }) {
  const [type, content] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  const lines = [`curl ${verb === "get" ? "" : `-X ${verb.toUpperCase()} `}${location.origin}${path}`];
  if (type === "application/json") {
    lines.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(exampleOf(document, content.schema))}'`);
  } else if (type) {
    for (const { name, type: kind, isNeeded } of fieldsOf(document, content.schema)) {
      if (isNeeded) lines.push(kind === "a file" ? `-F ${name}=@picture.png` : `-F '${name}=a big red circle'`);
    }
  }
  const text = make("pre", { tabindex: 0 }, make("code", {}, lines.join(" \\\n  ")));
  return make("details", {}, make("summary", {}, "With curl"), text);
}

/** A text with `code` in it. */
function coded(text) {
  return text.split("`").map((part, number) => (number % 2 ? make("code", {}, part) : part));
}
