"""Docstrings: the first sentence, the meanings under `Args:`, and the docstrings of module-level values."""

import ast
import inspect
import re
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

_ENTRY = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)")


def first_sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring as one line, "" where there is none.

    >>> first_sentence("Return the size. It is in bytes.")
    'Return the size.'
    """
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()))[0]


def argument_meanings(docstring: str | None) -> dict[str, str]:
    """Return the meaning of each name under `Args:`. Names that share a line share its meaning.

    >>> argument_meanings('''Summary.
    ...
    ...     Args:
    ...         host, port: of the server,
    ...             which listens there.
    ...     ''')
    {'host': 'of the server, which listens there.', 'port': 'of the server, which listens there.'}
    """
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in _argument_lines(inspect.cleandoc(docstring or "")):
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            meanings.update(dict.fromkeys(names, entry[2]))
        elif line.strip():
            meanings.update({name: f"{meanings[name]} {line.strip()}" for name in names})
    return meanings


def field_meanings(owner: type) -> Mapping[str, str]:
    """Return the meaning of each field of a class, from its docstring and from the classes that its docstring names.

    A class is named as `Name`, and found if the module of `owner` holds it.
    """
    module = sys.modules[owner.__module__]
    docstring = inspect.getdoc(owner) or ""
    named = [getattr(module, name, None) for name in re.findall(r"`(\w+)`", docstring)]
    meanings: dict[str, str] = {}
    for other in named:
        if inspect.isclass(other) and other is not owner:
            meanings |= argument_meanings(inspect.getdoc(other))
    return meanings | argument_meanings(docstring)


def value_docstrings(source: Path) -> Mapping[str, str]:
    """Return the docstrings below the assignments of a module, by the name that is assigned."""
    body = ast.parse(source.read_text(encoding="utf-8")).body
    return {
        name: text
        for statement, following in pairwise(body)
        if (name := _assigned_name(statement)) and (text := _string_statement(following))
    }


def _argument_lines(docstring: str) -> list[str]:
    lines = docstring.splitlines()
    if "Args:" not in lines:
        return []
    rest = lines[lines.index("Args:") + 1 :]
    return rest[: next((number for number, line in enumerate(rest) if line[:1].strip()), len(rest))]


def _assigned_name(statement: ast.stmt) -> str:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _string_statement(statement: ast.stmt) -> str:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
