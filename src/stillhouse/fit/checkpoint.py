"""Atomic writing of checkpoint files."""

import os
from collections.abc import Callable
from pathlib import Path

from stillhouse.errors import FitFailed


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it; an interrupted write leaves the old file unchanged.

    Args:
        path: file to create or replace; its directory must exist.
        write: writes the content to the path that it receives.

    Raises:
        FitFailed: the disk is full, or the directory is not writable.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    for stale in path.parent.glob(f"{path.name}.*.partial"):
        stale.unlink(missing_ok=True)  # a killed process leaves its temporary file, as large as a checkpoint
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        raise FitFailed(f"{path} cannot be written: {error}", fix="make room, then run the command again") from error
