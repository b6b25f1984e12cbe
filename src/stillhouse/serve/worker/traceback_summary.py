"""Tracebacks without messages, for a log that must not contain prompts or keys."""

import traceback
from pathlib import Path

_MAX_FRAMES = 24
"""Largest number of frames of a summary, innermost first."""


def traceback_summary(error: BaseException) -> str:
    """Return the frames of an error and its causes, innermost first: `images/png.py:80 read_png < ...`.

    >>> try:
    ...     [].pop()
    ... except IndexError as error:
    ...     traceback_summary(error).endswith("<module>")
    True
    """
    summary: list[str] = []
    cause: BaseException | None = error
    visited = set[int]()
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        frames = reversed(traceback.extract_tb(cause.__traceback__))
        summary[:0] = ["/".join(Path(frame.filename).parts[-2:]) + f":{frame.lineno} {frame.name}" for frame in frames]
        cause = cause.__cause__ or cause.__context__
    return " < ".join(summary[:_MAX_FRAMES])
