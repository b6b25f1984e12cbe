"""Where data are kept that may be deleted at any time: `$XDG_CACHE_HOME/stillhouse`, or else `~/.cache/stillhouse`."""

import os
from pathlib import Path


def cache_path(name: str) -> Path:
    """Return the path of a directory below the user's cache directory, which may not exist yet.

    Args:
        name: what the directory holds, such as compiled.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse" / name


def cache_directory(name: str) -> Path | None:
    """Return the directory of `cache_path`, after creating it; None if it is not writable."""
    directory = cache_path(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None
