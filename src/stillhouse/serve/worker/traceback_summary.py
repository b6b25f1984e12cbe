"""The way to an error, for a log that never holds a prompt or a key: places in the code, and nothing that was said."""

import traceback
from pathlib import Path

_MAX_FRAMES = 24
"""Places that are told, those where it happened first."""


def traceback_summary(error: BaseException) -> str:
    """Where an error and its causes were raised, the innermost place first: `models/png.py:80 read_png < ...`.

    >>> try:
    ...     [].pop()
    ... except IndexError as error:
    ...     way_to(error).endswith("<module>")
    True
    """
    places: list[str] = []
    cause: BaseException | None = error
    seen = set[int]()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = reversed(traceback.extract_tb(cause.__traceback__))
        places[:0] = ["/".join(Path(one.filename).parts[-2:]) + f":{one.lineno} {one.name}" for one in frames]
        cause = cause.__cause__ or cause.__context__
    return " < ".join(places[:_MAX_FRAMES])
