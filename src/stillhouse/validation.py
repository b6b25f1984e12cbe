"""Strict conversion of JSON and TOML values to typed objects.

Error messages begin with the path of the wrong value, such as `$.defaults.steps`, where `$` is the whole document.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from stillhouse.errors import InvalidRequest

T = TypeVar("T")


class InvalidDocument(ValueError):
    """A value does not fit its type.

    The message begins with the path of the value, such as `$.defaults.steps`, where `$` is the whole document.
    """


def convert(kind: type[T], value: object, path: str = "$") -> T:
    """Convert a value that `json.loads` returned to an object of the type `kind`.

    A field that is missing, unknown, of another type or outside its range raises InvalidDocument.

    Args:
        kind: a dataclass, or another type that msgspec converts to. An integer is accepted for a float, a bool is not.
        path: where `value` lies in its document, for the error message; "$" is the whole document.

    >>> convert(tuple[int, ...], [1, 2])
    (1, 2)
    """
    # The paths in msgspec's errors lack the keys of mappings. Each field and element is therefore converted on its own
    # first, with the full path from `_parts`.
    for part_path, part_kind, part in _parts(kind, value, path):
        convert(part_kind, part, part_path)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidDocument(f"{path}{_reason(kind, value, error)}") from error


def read_toml(kind: type[T], path: Path, fix: str) -> T:
    """Read a TOML file and convert its content to an object of the type `kind`, a dataclass.

    Args:
        kind: type of the result.
        path: the file.
        fix: what the user can do where the file does not exist; ends the error message.

    Raises:
        InvalidRequest: the file does not exist, is not TOML, or does not fit `kind`.
    """
    try:
        return convert(kind, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", fix=fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}") from None
    except InvalidDocument as error:
        raise InvalidRequest(f"{path}: {error}") from None


def _parts(kind: Any, value: object, path: str) -> Iterator[tuple[str, Any, object]]:
    """Yield path, type and value of each entry of a dict or list that is to be converted to the type `kind`.

    `path` is the path of `value` in its document; the paths of the entries begin with it. A value that is no dict or
    list has no entries. A key of the dict that is no field of the dataclass `kind` raises InvalidDocument.
    """
    if get_origin(kind) in (Union, UnionType) and len(some := set(get_args(kind)) - {NoneType}) == 1:
        kind = some.pop()
    arguments = get_args(kind)
    if isinstance(value, dict) and (arguments or is_dataclass(kind)):
        hints = get_type_hints(kind) if is_dataclass(kind) else dict.fromkeys(value, arguments[-1])
        for name, part in value.items():
            if name not in hints:
                raise InvalidDocument(f"{path}.{name} is not known here; allowed: {', '.join(hints)}")
            yield f"{path}.{name}", hints[name], part
    elif isinstance(value, list) and get_origin(kind) is tuple:
        kinds = arguments if arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        for i, (part_kind, part) in enumerate(zip(kinds, value, strict=False)):
            yield f"{path}[{i}]", part_kind, part


def _reason(kind: Any, value: object, error: msgspec.ValidationError) -> str:
    """Return why a value cannot be converted, although each of its entries can.

    The text follows the path of the value in an error message, and begins with a space or with the name of a field.

    Args:
        kind: type to which the value was to be converted.
        value: the value.
        error: error of msgspec about the value.
    """
    if error.__cause__ is not None:
        return f" is refused: {error.__cause__}"
    if missing := re.match("Object missing required field `(.+)`", str(error)):
        return f".{missing[1]} is missing"
    expected = re.match("Expected `(.+)`(.*), got", str(error))
    literals = ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else ""
    return f" is {value!r}; allowed: {literals or (expected and expected[1] + expected[2]) or error}"
