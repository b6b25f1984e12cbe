"""Where data are kept that may be deleted at any time: `$XDG_CACHE_HOME/stillhouse`, or else `~/.cache/stillhouse`."""

import os
from pathlib import Path


def cache_directory(name: str) -> Path | None:
    """Return a directory below the user's cache directory, after creating it; None if it is not writable.

    Args:
        name: what the directory holds, such as compiled.
    """
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse" / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None
