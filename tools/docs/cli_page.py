"""docs/cli.md: the help of `stillhouse` and of each of its commands."""

import os
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from unittest.mock import patch

from stillhouse.cli import COMMANDS, parse
from tools.docs.markdown import NOTICE, code_block, format_table

COLUMNS = 100
"""Width of the help texts, in characters."""
_REPEATED_METAVAR = re.compile(r"(-\w) (\S+), (--[\w-]+ \2)(?=\s)")


def render_cli_page() -> str:
    """Return the page: the commands with their summaries, then the help of each."""
    summaries = [[f"[{name}](#stillhouse-{name})", _capitalize(summary)] for name, (_, summary) in COMMANDS.items()]
    parts = [
        NOTICE,
        "# Command line\n",
        format_table(["command", "what it does"], summaries),
        code_block(help_text(), "text"),
        *map(_command_section, COMMANDS),
    ]
    return "\n".join(parts)


def help_text(*command: str) -> str:
    """Return what `stillhouse COMMAND --help` prints at a terminal of `COLUMNS` characters."""
    printed = StringIO()
    environment = {"COLUMNS": str(COLUMNS), "PYTHON_COLORS": "0"}
    with patch.dict(os.environ, environment), redirect_stdout(printed), suppress(SystemExit):
        parse([*command, "--help"])
    return printed.getvalue()


def normalize_help(page: str) -> str:
    """Return a page without what differs from one version of argparse to another.

    Python 3.13 and later write `-o, --out DIR`, earlier ones `-o DIR, --out DIR`; lines may break elsewhere.

    >>> normalize_help("-o DIR, --out DIR  output") == normalize_help("-o, --out DIR    output")
    True
    """
    return " ".join(_REPEATED_METAVAR.sub(r"\1, \3", page).split())


def _command_section(name: str) -> str:
    summary = _capitalize(COMMANDS[name][1])
    return f"## stillhouse {name}\n{summary}\n{code_block(help_text(name), 'text')}"


def _capitalize(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}."
