"""JSON into frozen dataclasses, strictly: a wrong value is reported with its path, `$.defaults.steps`."""

import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stillhouse.errors import InvalidRequest

T = TypeVar("T")


class DecodeError(ValueError):
    """A value that does not fit its type; the message begins with the JSON path."""


def decode(kind: type[T], value: object, path: str = "$") -> T:
    """Read `value`, as `json.loads` gives it, as a `kind`.

    Args:
        kind: a dataclass, `Mapping[str, X]`, `tuple[X, ...]`, a union, a Literal, or str, int, float, bool.
        value: objects, lists and scalars out of JSON.
        path: where `value` stands in its document.

    Raises:
        DecodeError: a field is missing, is not known, or has a value of another type.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    """
    return _decode(kind, value, path)  # type: ignore[no-any-return]


def read_toml(kind: type[T], path: Path, without: str) -> T:
    """A TOML file as a `kind`.

    Args:
        kind: as in `decode`.
        path: of the file.
        without: what to do where there is none.

    Raises:
        InvalidRequest: no such file, no TOML, or a value that does not fit.
    """
    try:
        return decode(kind, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", fix=without) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}") from None
    except DecodeError as error:
        raise InvalidRequest(f"{path}: {error}") from None


def _decode(kind: Any, value: Any, path: str) -> Any:
    if kind is Any or kind is object:
        return value
    if is_dataclass(kind):
        return _record(kind, value, path)
    origin = get_origin(kind)
    if origin is Literal:
        return _member(get_args(kind), value, path)
    if origin in (Union, types.UnionType):
        return _optional(get_args(kind), value, path)
    if origin is tuple:
        return tuple(_decode(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(_list(value, path)))
    if origin is not None:
        return {key: _decode(get_args(kind)[1], item, f"{path}.{key}") for key, item in _object(value, path).items()}
    return _scalar(kind, value, path)


def _record(kind: Any, value: Any, path: str) -> Any:
    given, hints = _object(value, path), get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for name in given.keys() - known.keys():
        raise DecodeError(f"{path}.{name} is not known here")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise DecodeError(f"{path}.{name} is missing")
    values = {name: _decode(hints[name], item, f"{path}.{name}") for name, item in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise DecodeError(f"{path} is refused: {error}") from error


def _member(allowed: tuple[Any, ...], value: Any, path: str) -> Any:
    if value not in allowed:
        raise DecodeError(f"{path} is {value!r}, not one of {', '.join(map(repr, allowed))}")
    return value


def _optional(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    return _decode(next(kind for kind in kinds if kind is not types.NoneType), value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise DecodeError(f"{path} is {value!r}, not a value of type {kind.__name__}")
    return value


def _object(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{path} is {value!r}, not an object")
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError(f"{path} is {value!r}, not a list")
    return value
