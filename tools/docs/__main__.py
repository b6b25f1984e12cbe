"""Write the generated documentation, or with `--check` name the files that differ from the code."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from tools.docs.pages import PAGES, Page, is_current

ROOT = Path(__file__).parents[2]
COMMAND = "make docs"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check every page.

    Args:
        argv: command line arguments; None reads those of the process.
        root: directory that holds `docs/`.

    Returns:
        1 if `--check` names a page, otherwise 0.
    """
    parser = ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page differs")
    is_check = parser.parse_args(argv).check
    stale = [page for page in PAGES if not is_current(page, root)]
    if is_check:
        return _report(stale)
    for page in stale:
        (root / page.path).write_text(page.render(page.read(root)), encoding="utf-8")
        print(f"wrote {page.path}")
    return 0


def _report(stale: Sequence[Page]) -> int:
    for page in stale:
        print(f"{page.path} differs from the code", file=sys.stderr)
    if stale:
        print(f"run `{COMMAND}` (python -m tools.docs), and commit what it writes", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
