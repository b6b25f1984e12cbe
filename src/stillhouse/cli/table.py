"""Tables as plain text for the terminal."""

from collections.abc import Sequence


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text: the headings, then the rows, with columns aligned left and two spaces apart.

    >>> print(format_table(["name", "seconds"], [["ddim", "1.2"]]))
    name  seconds
    ddim  1.2
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (headings, *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)
