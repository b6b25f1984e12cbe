"""Progress bar on standard error, shown only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Called with a description, the completed amount and the total."""


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that updates a progress bar. The bar disappears at the end."""
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
    # On a terminal, rich prints the lines of stdout above the bar. Redirected stdout must not pass through rich, which
    # would print its lines on the terminal.
    above = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above) as bar:
        task = bar.add_task("", total=None)
        yield lambda description, done, total: bar.update(task, description=description, completed=done, total=total)
