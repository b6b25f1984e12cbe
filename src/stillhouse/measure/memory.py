"""How much memory a process takes, as Linux tells it; other systems tell nothing here."""

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """Bytes in memory at this moment, of a process and all of its descendants.

    Pages that processes share count once for each. 0 where there is no such process, or the system does not say.

    Args:
        pid: the process.
        root: where `proc` lies.

    >>> import os
    >>> resident(os.getpid()) > 0
    True
    """
    return sum(own_resident_bytes(each, root) for each in (pid, *_descendants(pid, root)))


def own_resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """As `resident`, without descendants: one file is read, where looking for children reads one of each process.

    >>> import os
    >>> resident_alone(os.getpid()) > 0
    True
    """
    return _status_bytes(pid, "VmRSS", root) or 0


def release_memory() -> None:
    """Give the system what nothing in this process refers to any more: closed pipelines refer to themselves, and the C
    library keeps what it was given back.

    >>> give_back()
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_bytes(pid: int, root: Path = _ROOT) -> int | None:
    """Bytes in memory of one process when it had most. None where there is none, or the system does not say.

    Args:
        pid: the process, alive: nothing is known of one that ended.
        root: where `proc` lies.

    >>> import os
    >>> (peak(os.getpid()) or 0) > 0
    True
    """
    return _status_bytes(pid, "VmHWM", root)


def _descendants(pid: int, root: Path) -> list[int]:
    """Children first. A parent's own list of its children is not in every kernel; each child names its parent."""
    children: dict[int, list[int]] = {}
    for folder in (root / "proc").glob("[0-9]*"):
        # "pid (name) state parent ...", where the name may hold anything.
        words = _read_text(folder / "stat").rpartition(")")[2].split()
        if len(words) > 1:
            children.setdefault(int(words[1]), []).append(int(folder.name))
    found, ahead = [], [pid]
    while ahead:
        born = [child for child in children.pop(ahead.pop(), []) if child != pid]
        found += born
        ahead += born
    return found


def _status_bytes(pid: int, name: str, root: Path) -> int | None:
    line = re.search(rf"^{name}:\s+(\d+) kB", _read_text(root / f"proc/{pid}/status"), re.MULTILINE)
    return int(line[1]) * 1024 if line else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended in the meantime, or there is no such file on this system
        return ""
