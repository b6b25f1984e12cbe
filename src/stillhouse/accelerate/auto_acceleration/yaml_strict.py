"""Strict reading of YAML: a duplicate key is an error, and every key is read as text, exactly as the file spells it."""

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from stillhouse.errors import InvalidRequest, RuntimeMissing

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_TAB_OR_COMMENT = re.compile(
    r"""(?<![^\s\[{,:])(?P<quoted>"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|(?:^|[ \t])\#[^\r\n]*|\t"""
)
"""What may hold a tab behind the indentation of a line: quoted text, a comment, or neither."""
_TAB_WIDTHS = (1, 2, 3, 4, 8)
"""Widths of tabs in common editors, and others; a document counts only if all of them give the same one."""


def read_yaml(path: Path) -> Any:
    """Return the YAML document of a file: dicts with str keys, lists, and scalars; None for an empty file.

    Tabs, which YAML does not allow, are read as spaces up to the next tab stop, with a warning, if the width of a tab
    does not matter. Keys are not converted: 007, on and 1.0 become "007", "on" and "1.0". YAML 1.1 reads such keys as
    7, True and 1.0.

    Raises:
        InvalidRequest: the file is missing or not YAML, a key occurs twice or is not a scalar, or the document depends
            on the width of a tab.
        RuntimeMissing: PyYAML is not installed.
    """
    yaml = _import_yaml()
    try:
        content = path.read_bytes()
        try:
            return _parse(yaml, content, path)
        except yaml.YAMLError as error:
            if b"\t" not in content:
                raise
            return _parse_with_tabs(yaml, content, path, error)
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


def _parse(yaml: Any, content: bytes | str, path: Path) -> Any:
    """Return the document of YAML text; raise InvalidRequest for its keys, or an error of the module `yaml`."""
    node = yaml.compose(content, Loader=yaml.SafeLoader)
    if node is None:
        return None
    _check_keys(yaml, node, path)
    return yaml.constructor.SafeConstructor().construct_document(node)


def _parse_with_tabs(yaml: Any, content: bytes, path: Path, error: Any) -> Any:
    """Return the document of YAML text with tabs, which YAML does not allow, and warn about the tabs.

    A tab becomes the spaces up to the next column that is a multiple of a width. The document is returned only where
    each of the widths _TAB_WIDTHS gives the same one, so that it does not depend on the width in the user's editor.

    Args:
        yaml: the module of PyYAML.
        content: bytes of the file.
        path: path of the file, for messages.
        error: error of reading the file with its tabs, raised again where the tabs are not what is wrong.

    Raises:
        InvalidRequest: the widths give different documents, or a key occurs twice.
    """
    text = content.decode("utf-8-sig", errors="strict")
    documents, errors = [], []
    for width in _TAB_WIDTHS:
        try:
            documents.append(_parse(yaml, _expand_tabs(text, width), path))
        except yaml.YAMLError as other_error:
            errors.append(other_error)
    line = _tab_line(text, error)
    if not documents:
        raise errors[-1]
    if errors or len(set(map(repr, documents))) > 1:
        raise InvalidRequest(
            f"{path}: the tab on line {line} is ambiguous, because other lines have spaces",
            allowed="the same indentation, tabs or spaces, on all lines",
            fix="indent with spaces; YAML does not allow tabs",
        )
    warnings.warn(f"{path}: tabs, which YAML does not allow, were read as spaces (line {line})", stacklevel=4)
    return documents[0]


def _expand_tabs(text: str, width: int) -> str:
    """Replace the tabs before the text of each line by spaces up to a column; tabs behind it by one space each.

    Quoted text keeps its tabs, other than comments with quotes.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        start = len(line) - len(line.lstrip(" \t"))
        rest = _TAB_OR_COMMENT.sub(lambda found: found["quoted"] or found[0].replace("\t", " "), line[start:])
        lines.append(line[:start].expandtabs(width) + rest)
    return "".join(lines)


def _tab_line(text: str, error: Any) -> int:
    """Return the number, from 1, of the line of an error if this line has a tab, else of the first line with a tab."""
    lines = text.splitlines()
    mark = getattr(error, "problem_mark", None)
    if mark and mark.line < len(lines) and "\t" in lines[mark.line]:
        return int(mark.line) + 1
    return next(number for number, line in enumerate(lines, 1) if "\t" in line)


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
