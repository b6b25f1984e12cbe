"""The tables of settings in docs/serving.md and docs/distillation.md, from the classes that the TOML files fill."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as types

from tools.docs.docstrings import field_meanings
from tools.docs.markdown import code, format_table

_NAMES: dict[type[types.Type], str] = {
    types.StrType: "string",
    types.IntType: "integer",
    types.FloatType: "number",
    types.BoolType: "boolean",
    types.DataclassType: "table",
    types.StructType: "table",
}
_RECORDS = (types.DataclassType, types.StructType)


def render_settings(settings_class: type) -> str:
    """Return the table of a class of settings, then that of each class that is a TOML table inside it.

    Args:
        settings_class: a dataclass or a msgspec Struct.
    """
    root = _record_type(settings_class)
    parts = [_format_fields(settings_class)]
    for record, tables in _nested_records(root):
        heading = ", ".join(code(f"[{table}]") for table in tables)
        parts.append(f"\n{heading}:\n\n{_format_fields(record.cls)}")
    return "".join(parts)


def settings_without_meaning(settings_class: type) -> list[str]:
    """Return the fields, as `Class.field`, of a class and of the classes inside it that no docstring describes."""
    root = _record_type(settings_class)
    classes = [settings_class, *(record.cls for record, _ in _nested_records(root))]
    return [
        f"{owner.__name__}.{field.name}"
        for owner in classes
        for field in _record_type(owner).fields
        if not field_meanings(owner).get(field.name)
    ]


def format_type(kind: types.Type) -> str:
    """Return the words for a type of a setting. TOML has no null, so None is left out.

    >>> format_type(types.type_info(int | None)), format_type(types.type_info(tuple[str, ...]))
    ('integer', 'list of strings')
    """
    if isinstance(kind, types.UnionType):
        return " or ".join(format_type(member) for member in kind.types if not isinstance(member, types.NoneType))
    if isinstance(kind, types.LiteralType):
        return " or ".join(code(json.dumps(value)) for value in kind.values)
    if isinstance(kind, types.VarTupleType | types.ListType):
        return f"list of {format_type(kind.item_type)}s"
    if isinstance(kind, types.DictType):
        return f"table of {format_type(kind.value_type)}s"
    name = type(kind).__name__.removesuffix("Type").lower()
    return _NAMES.get(type(kind), name)


def format_default(field: types.Field) -> str:
    """Return the default of a setting as TOML writes it; of a table, the names in it."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "unset"
    if isinstance(field.type, types.DictType):
        return ", ".join(map(code, value)) or "empty"
    return "as below" if isinstance(field.type, _RECORDS) else code(json.dumps(msgspec.to_builtins(value)))


def _format_fields(owner: type) -> str:
    meanings = field_meanings(owner)
    rows = [
        [code(field.name), format_type(field.type), format_default(field), meanings.get(field.name, "")]
        for field in _record_type(owner).fields
    ]
    return format_table(["setting", "type", "default", "meaning"], rows)


def _record_type(owner: type) -> types.DataclassType | types.StructType:
    kind = types.type_info(owner)
    if not isinstance(kind, _RECORDS):
        raise TypeError(f"{owner.__name__} is neither a dataclass nor a msgspec Struct")
    return kind


def _nested_records(root: Any) -> Iterator[tuple[Any, list[str]]]:
    """Yield each class of tables below a class of settings, with the headings of these tables."""
    tables: dict[type, tuple[Any, list[str]]] = {}
    for field in root.fields:
        is_mapping = isinstance(field.type, types.DictType)
        record = field.type.value_type if is_mapping else field.type
        if isinstance(record, _RECORDS):
            _, headings = tables.setdefault(record.cls, (record, []))
            headings.append(f"{field.name}.NAME" if is_mapping else field.name)
    yield from tables.values()
