"""The HTTP API as Markdown, out of the OpenAPI document of the application."""

import json
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from stillhouse.serve.api import studio
from stillhouse.serve.api.app import make_app
from stillhouse.serve.api.kserve import routes
from stillhouse.serve.service import Service
from stillhouse.serve.settings import ServerSettings
from tools.docs.docstrings import argument_meanings
from tools.docs.markdown import code, format_table

_REFERENCE = "#/components/schemas/"
_SECTION = re.compile(r"\n\s*(?:Args|Returns|Raises):\n")
"""The begin of the parts of a docstring that are meant for callers in Python."""


def render_http_api() -> str:
    """Return the section of the HTTP API: each operation under the heading of its tag."""
    document = openapi_document()
    parts = [
        "## HTTP\n",
        f"The same as OpenAPI {document['openapi']}: `/docs/openapi.json`; to read in a browser: `/docs`.\n",
    ]
    operations = list(_operations(document))
    for tag in dict.fromkeys(_tag(operation) for _, _, operation in operations):
        parts.append(f"### {tag}\n")
        # Sorted, because the paths of a handler with several are in no order.
        chosen = sorted((entry for entry in operations if _tag(entry[2]) == tag), key=_path_and_method)
        parts += [render_operation(method, path, operation, document) for method, path, operation in chosen]
    return "\n".join(parts)


def openapi_document() -> Mapping[str, Any]:
    """Return the OpenAPI document of a server with default settings. No worker is started."""
    service = cast(Service, SimpleNamespace(settings=ServerSettings()))
    app = make_app(service, [*routes.HANDLERS, *studio.HANDLERS])
    document: Mapping[str, Any] = json.loads(json.dumps(app.openapi_schema.to_schema()))
    return document


def render_operation(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return an operation: heading, summary, description, parameters, request fields and responses."""
    schemas = document["components"]["schemas"]
    description = _SECTION.split(operation.get("description", ""))[0]
    parts = [f"#### {method.upper()} {path}", f"{operation['summary']}. {description}".rstrip()]
    if parameters := operation.get("parameters"):
        parts.append(_parameters_table(parameters, schemas))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts += [f"Request body, {code(media_type)}:", _fields_table(content["schema"], schemas)]
    parts.append(f"Responses: {_responses(operation['responses'])}.")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def format_schema(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Return the words for a JSON schema.

    >>> format_schema({"oneOf": [{"type": "integer", "minimum": 1.0}, {"type": "null"}]}, {})
    'integer, at least 1, or null'
    """
    if members := schema.get("oneOf") or schema.get("anyOf"):
        return _join_types([format_schema(member, schemas) for member in members])
    if "enum" in schema:
        return _join_types([code(json.dumps(value)) if value is not None else "null" for value in schema["enum"]])
    if "$ref" in schema:
        return format_schema(schemas[schema["$ref"].removeprefix(_REFERENCE)], schemas)
    if schema.get("contentEncoding") == "binary":
        return "file"
    names = schema.get("type", "any")
    if names == "array":
        return f"array of {format_schema(schema.get('items', {}), schemas)}"
    return _join_types([names] if isinstance(names, str) else names) + _bounds(schema)


def request_meanings(schemas: Mapping[str, Any], title: str | None = None) -> Mapping[str, str]:
    """Return the meaning of request fields, from the docstrings of the Structs that request bodies are decoded to.

    Args:
        schemas: components of the document, whose names are those of the Structs.
        title: of the Struct; None, all of them, where the first that has a field describes it.
    """
    structs = {struct.__name__: struct for struct in _subclasses(msgspec.Struct)}
    meanings: dict[str, str] = {}
    for name in schemas if title is None else [title]:
        if name in structs:
            meanings = argument_meanings(structs[name].__doc__) | meanings
    return meanings


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _path_and_method(entry: tuple[str, str, Mapping[str, Any]]) -> tuple[str, str]:
    return entry[1], entry[0]


def _tag(operation: Mapping[str, Any]) -> str:
    return str(operation.get("tags", ["Other"])[0])


def _parameters_table(parameters: list[Mapping[str, Any]], schemas: Mapping[str, Any]) -> str:
    rows = [
        [
            code(parameter["name"]),
            parameter["in"],
            format_schema(parameter["schema"], schemas),
            _default(parameter["schema"], parameter.get("required", False)),
            parameter.get("description", ""),
        ]
        for parameter in parameters
    ]
    return format_table(["parameter", "in", "type", "default", "meaning"], rows)


def _fields_table(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    name = schema.get("$ref", "").removeprefix(_REFERENCE)
    meanings = request_meanings(schemas, name or None)
    fields = _fields(schemas[name] if name else schema, schemas)
    rows = [
        [code(path), format_schema(field, schemas), _default(field, is_required), _meaning(path, field, meanings)]
        for path, field, is_required in fields
    ]
    return format_table(["field", "type", "default", "meaning"], rows)


def _fields(
    schema: Mapping[str, Any], schemas: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield the fields of an object and of the objects in it: path (`inputs[].name`), schema, whether required."""
    for name, field in schema.get("properties", {}).items():
        yield f"{prefix}{name}", field, name in schema.get("required", ())
        suffix, inner = ("[]", field.get("items", {})) if field.get("type") == "array" else ("", field)
        yield from _fields(inner, schemas, f"{prefix}{name}{suffix}.")


def _meaning(path: str, field: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    return str(field.get("description") or meanings.get(path, ""))


def _default(schema: Mapping[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    return code(json.dumps(schema["default"])) if "default" in schema else ""


def _responses(responses: Mapping[str, Any]) -> str:
    """Return the statuses with their media types as one line."""
    media = {status: ", ".join(map(code, response.get("content", {}))) for status, response in responses.items()}
    return "; ".join(f"{status} ({types})" if types else status for status, types in media.items())


def _join_types(names: list[str]) -> str:
    types = [name for name in names if name != "null"]
    joined = " or ".join(types) or "null"
    comma = "," if "," in joined else ""
    return f"{joined}{comma} or null" if types and "null" in names else joined


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most", "maxLength": "at most"}
    units = {"maxLength": " characters"}
    return "".join(f", {word} {schema[name]:g}{units.get(name, '')}" for name, word in words.items() if name in schema)


def _subclasses(parent: type) -> Iterator[type]:
    children: list[type] = parent.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
