/** API documentation: every operation of /docs/openapi.json, by tag. */

import { fetchJson } from "./api.js";
import { find, make } from "./element.js";
import { exampleOf, fieldsOf, noteOf, typeOf } from "./schema.js";
import { explain } from "./errors.js";

const VERBS = ["get", "post", "put", "patch", "delete", "head", "options"];
const ELSE = "Other";

try {
  show(await fetchJson("/docs/openapi.json"));
} catch (error) {
  find("#lead").textContent = explain(error).text;
}

function show(document) {
  const groups = grouped(document);
  const count = [...groups.values()].flat().length;
  find("#lead").replaceChildren(
    `${document.info.title} ${document.info.version} has ${count} operations at `,
    make("code", {}, location.origin),
    ". If keys are required, send one as ",
    make("code", {}, "Authorization: Bearer KEY"),
    ".",
  );
  for (const [name, operations] of groups) {
    const titles = operations.map((operation) => operation.title);
    const first = operations.filter((operation, number) => titles.indexOf(operation.title) === number);
    const links = first.map((operation) => make("a", { href: `#${operation.id}` }, operation.title));
    find("#contents").append(make("div", {}, make("h2", {}, name), ...links));
    find("#operations").append(
      make(
        "section",
        { class: "group" },
        make("h2", {}, name),
        ...operations.map((operation) => sectionOf(document, operation)),
      ),
    );
  }
  if (location.hash) find(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView();
}

function grouped(document) {
  const groups = new Map();
  for (const [path, item] of Object.entries(document.paths)) {
    for (const verb of VERBS.filter((name) => item[name])) {
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

function sectionOf(document, operation) {
  return make(
    "article",
    { class: "operation", id: operation.id },
    make("h3", {}, operation.title),
    make(
      "p",
      { class: "endpoint" },
      make("span", { class: "verb" }, operation.verb.toUpperCase()),
      make("code", {}, operation.path),
    ),
    operation.description && make("p", { class: "caption" }, ...coded(operation.description)),
    ...parameters(document, operation),
    ...bodies(document, operation),
    ...answers(operation),
    example(document, operation),
  );
}

function parameters(document, { parameters: list }) {
  if (!list.length) return [];
  const rows = list.map((parameter) => {
    const note = parameter.description ?? noteOf(document, parameter.schema);
    const place = `in the ${parameter.in}`;
    return row(parameter.name, place, parameter.required, [typeOf(document, parameter.schema), note]);
  });
  return [make("h4", {}, "Parameters"), make("dl", { class: "fields" }, rows)];
}

function bodies(document, { requestBody }) {
  return Object.entries(requestBody?.content ?? {}).flatMap(([type, { schema }]) => {
    const fields = fieldsOf(document, schema);
    const rows = fields.map((field) => row(field.name, "", field.isRequired, [field.type, field.note]));
    return [make("h4", {}, "Body ", make("code", { class: "soft" }, type)), make("dl", { class: "fields" }, rows)];
  });
}

function row(name, place, isRequired, texts) {
  const marks = [place, isRequired && "required"].filter(Boolean).join(", ");
  const term = make("dt", {}, make("code", {}, name), " ", make("span", { class: "needed" }, marks));
  const kind = isRequired ? texts[0] : texts[0].replace(/, or nothing$/, "");
  return make("div", {}, term, make("dd", {}, ...coded([kind, texts[1]].filter(Boolean).join("; "))));
}

function answers({ responses = {} }) {
  const list = Object.entries(responses).map(([status, { description }]) =>
    make("li", {}, make("b", {}, status), ` ${description ?? ""}`),
  );
  return [make("h4", {}, "Responses"), make("ul", { class: "answers" }, list)];
}

function example(document, { verb, path, requestBody }) {
  const [type, content] = Object.entries(requestBody?.content ?? {})[0] ?? [];
  const lines = [`curl ${verb === "get" ? "" : `-X ${verb.toUpperCase()} `}${location.origin}${path}`];
  if (type === "application/json") {
    lines.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(exampleOf(document, content.schema))}'`);
  } else if (type) {
    for (const { name, type: kind, isRequired } of fieldsOf(document, content.schema)) {
      if (isRequired) lines.push(kind === "a file" ? `-F ${name}=@picture.png` : `-F '${name}=a big red circle'`);
    }
  }
  const text = make("pre", { tabindex: 0 }, make("code", {}, lines.join(" \\\n  ")));
  return make("details", {}, make("summary", {}, "With curl"), text);
}

/** A text with `code` spans. */
function coded(text) {
  return text.split("`").map((part, number) => (number % 2 ? make("code", {}, part) : part));
}
