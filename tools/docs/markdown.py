"""Markdown: tables, code blocks, and sections of a page that are generated."""

import re
from collections.abc import Iterable, Sequence

NOTICE = "<!-- Generated from the code by `make docs`. Do not edit. -->\n"
"""First line of a page that is generated as a whole."""


def format_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; columns without any text are left out.

    >>> print(format_table(["name", "unit", "meaning"], [["size", "", "a|b"]]), end="")
    | name | meaning |
    | --- | --- |
    | size | a\\|b |
    """
    lines = [[escape(cell) for cell in row] for row in rows]
    columns = [number for number in range(len(headings)) if any(line[number] for line in lines)]
    head = [[headings[number] for number in columns], ["---"] * len(columns)]
    body = [[line[number] for number in columns] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*head, *body])


def escape(text: str) -> str:
    """Return a text as one line that can stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a text as inline code, "" for an empty one."""
    return f"`{text}`" if text else ""


def code_block(text: str, language: str = "") -> str:
    """Return lines as a fenced code block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def replace_section(text: str, name: str, content: str, path: str) -> str:
    """Return a page with the lines between `<!-- generated: NAME -->` and `<!-- end -->` replaced.

    Args:
        text: of the page.
        name: of the section.
        content: new lines of the section, each with its line break.
        path: of the page, for the message.

    Raises:
        ValueError: the page does not have exactly one section of that name.
    """
    pattern = re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda match: match[1] + content + match[2], text)
    if count != 1:
        raise ValueError(
            f"{path} has {count} sections <!-- generated: {name} --> ... <!-- end -->; exactly 1 is needed"
        )
    return replaced
