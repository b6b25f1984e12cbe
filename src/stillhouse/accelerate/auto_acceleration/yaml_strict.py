"""Strict reading of YAML: a duplicate key is an error, and every key is read as text, exactly as the file spells it."""

from importlib import import_module
from pathlib import Path
from typing import Any

from stillhouse.errors import InvalidRequest, RuntimeMissing

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """Return the YAML document of a file: dicts with str keys, lists, and scalars; None for an empty file.

    Keys are not converted: 007, on and 1.0 become "007", "on" and "1.0". YAML 1.1 reads such keys as 7, True and 1.0.

    Raises:
        InvalidRequest: the file is missing or not YAML, or a key occurs twice or is not a scalar.
        RuntimeMissing: PyYAML is not installed.
    """
    yaml = _import_yaml()
    try:
        node = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check_keys(yaml, node, path)
        return yaml.constructor.SafeConstructor().construct_document(node)
    except OSError as error:
        raise InvalidRequest(
            f"{path} cannot be read: {error.strerror or error}", allowed="a config.yml that can be read"
        ) from None
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{path} is not YAML: {_format_error(error)}", fix=_suggest_fix(error)) from None
    except InvalidRequest:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{path} cannot be parsed: {error}", allowed="a valid YAML document") from None


def _import_yaml() -> Any:
    try:
        return import_module("yaml")
    except ImportError as error:
        fix = "pip install 'stillhouse[accelerate]'"
        raise RuntimeMissing(f"PyYAML, which reads config.yml, cannot be used here: {error}", fix=fix) from error


def _check_keys(yaml: Any, root: Any, path: Path) -> None:
    """Check all mappings of a YAML document, and mark their keys, in place, to be read as text.

    Raise InvalidRequest, which names the file `path`, if a key occurs twice in a mapping or is not a scalar.

    Args:
        yaml: the module of PyYAML.
        root: root node of the document, as `yaml.compose` returns it.
    """
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            _check_mapping(yaml, node, path)
            pending += [value for _, value in node.value]


def _check_mapping(yaml: Any, node: Any, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InvalidRequest(f"{path}: the key on line {line} is not a scalar", allowed="a text or a number as key")
        if key.tag == _MERGE:
            continue
        if key.value in lines:
            message = f"{path}: the key {key.value!r} is on line {lines[key.value]} and again on line {line}"
            raise InvalidRequest(message, allowed="each key once in a mapping", fix="delete one of the two lines")
        lines[key.value] = line
        key.tag = _TEXT


def _format_error(error: Any) -> str:
    """Return the message of an error of PyYAML with the line number in the file, if the error has one."""
    mark = getattr(error, "problem_mark", None)
    message = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{message} (line {mark.line + 1})" if mark else message


def _suggest_fix(error: Any) -> str | None:
    return "indent with spaces; YAML does not allow tabs" if "\\t" in str(error) else None
