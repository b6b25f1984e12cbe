"""Write files so that an interruption leaves the old file or the complete new file, never a part."""

import os
from collections.abc import Callable
from pathlib import Path

from stillhouse.errors import FitFailed


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it, so that an interruption leaves the old file unchanged.

    `write` writes the content to the path that it receives. The directory of `path` must exist.

    Raises:
        FitFailed: the disk is full, or the directory is not writable.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    for stale in path.parent.glob(f"{path.name}.*.partial"):
        # A killed process leaves its temporary file. The file is deleted, because it is as large as a checkpoint and
        # would fill the disk.
        stale.unlink(missing_ok=True)
    try:
        write(partial)
        partial.replace(path)
    # RuntimeError is caught as well, because torch.save raises it when the disk is full.
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise FitFailed(f"{path} cannot be written: {error}", fix="make room, then run the command again") from error
