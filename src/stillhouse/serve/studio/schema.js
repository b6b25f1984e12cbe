/** Descriptions of OpenAPI schemas in words. */

const NAMES = {
  string: "a text",
  integer: "a whole number",
  number: "a number",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  null: "nothing",
};

/** The schema that a reference refers to. */
export function resolved(document, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref
    .slice(2)
    .split("/")
    .reduce((part, name) => part[name], document);
}

/** "a whole number, or nothing", "png, jpeg or webp". */
export function typeOf(document, schema) {
  const real = resolved(document, schema);
  if (real.enum) return either(real.enum.map((value) => (value === null ? "nothing" : JSON.stringify(value))));
  if ("const" in real) return JSON.stringify(real.const);
  const several = real.oneOf ?? real.anyOf;
  if (several) return either(several.map((option) => typeOf(document, option)));
  if (Array.isArray(real.type)) return either(real.type.map((type) => plain({ ...real, type })));
  return plain(real);
}

/** The fields: `{ name, type, isRequired, note }`, required ones first. */
export function fieldsOf(document, schema) {
  const real = resolved(document, schema);
  const required = new Set(real.required ?? []);
  return Object.entries(real.properties ?? {})
    .map(([name, property]) => {
      const [type, note] = [typeOf(document, property), noteOf(document, property)];
      return { name, type, isRequired: required.has(name), note };
    })
    .sort((first, second) => Number(second.isRequired) - Number(first.isRequired));
}

/** Bounds, the default and the description, as one sentence, or empty. */
export function noteOf(document, schema) {
  const real = resolved(document, schema);
  const parts = [
    real.description,
    real.minimum === undefined ? null : `from ${real.minimum}`,
    real.maximum === undefined ? null : `up to ${real.maximum}`,
    real.maxLength === undefined ? null : `at most ${real.maxLength} characters`,
    defaultNote(schema.default ?? real.default),
  ];
  return parts.filter(Boolean).join("; ");
}

/** A minimal example body. */
export function exampleOf(document, schema) {
  const example = {};
  for (const { name, type, isRequired } of fieldsOf(document, schema)) {
    if (isRequired) example[name] = name === "prompt" ? "a big red circle" : type.startsWith("a text") ? "…" : 1;
  }
  return example;
}

function plain({ type, format, contentEncoding }) {
  if (contentEncoding === "binary" || format === "binary") return "a file";
  return NAMES[type] ?? "anything";
}

function either(words) {
  const flat = [...new Set(words.flatMap((word) => word.split(/, or |, /)))];
  const known = flat.filter((word) => word !== "nothing");
  const all = [known.join(", "), ...(flat.length > known.length ? ["nothing"] : [])];
  return all.filter(Boolean).join(", or ");
}

function defaultNote(value) {
  if (value === undefined || value === null || value === "") return null;
  return `${JSON.stringify(value)} by default`;
}
