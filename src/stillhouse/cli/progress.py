"""The progress bar: on stderr, and only where somebody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Called with what is being done, how much is done, and how much there is."""


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """A function to report to; the bar that it moves, with the time left, disappears at the end."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    # Lines printed meanwhile pass above the bar, unless stdout goes somewhere else, where they must arrive.
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
