"""Files that are either whole, or as they were."""

import os
from collections.abc import Callable
from pathlib import Path

from stillhouse.errors import FitFailed


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that it is either whole, or as it was.

    Raises:
        FitFailed: there is no room for it, or no right to write it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    for left in path.parent.glob(f"{path.name}.*.partial"):
        left.unlink(missing_ok=True)  # of a process that was killed: each is as large as the file
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
        partial.unlink(missing_ok=True)
        raise FitFailed(f"{path} cannot be written: {error}", fix="make room, and run it again to go on") from error
