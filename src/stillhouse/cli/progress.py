"""Progress bar on standard error, which is shown only if standard error is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Function that shows progress. Its arguments: a description of the work, the completed amount, the total amount."""


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a function that updates a progress bar, or, if standard error is no terminal, a function without effect."""
    if not sys.stderr.isatty():
        yield lambda description, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    # If stdout is a terminal, rich has to print what is written to stdout above the progress bar. If stdout is a file,
    # rich must not touch stdout, because rich would print the text on the terminal instead of into the file.
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above) as bar:
        task = bar.add_task("", total=None)
        yield lambda description, done, total: bar.update(task, description=description, completed=done, total=total)
