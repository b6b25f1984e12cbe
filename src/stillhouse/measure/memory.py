"""Memory of a process, read from Linux's /proc. On other systems the functions return 0 or None."""

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """Return the resident bytes of a process and all its descendants.

    A page that several processes share counts once for each of them. The result is 0 where the process does not exist
    or the system has no /proc.

    Args:
        pid: id of the process.
        root: directory that holds `proc`.

    >>> import os
    >>> resident_bytes(os.getpid()) > 0
    True
    """
    return sum(own_resident_bytes(process, root) for process in (pid, *_descendants(pid, root)))


def own_resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """Return the resident bytes of a process without its descendants.

    The result is 0 where the process does not exist or the system has no /proc. This function is faster than
    `resident_bytes`, which reads a file of every process on the machine to find the descendants.

    Args:
        pid: id of the process.
        root: directory that holds `proc`.

    >>> import os
    >>> own_resident_bytes(os.getpid()) > 0
    True
    """
    return _status_bytes(pid, "VmRSS", root) or 0


def release_memory() -> None:
    """Give unused memory of this process back to the system.

    Python collects reference cycles, such as those of closed pipelines, and the C library trims its heap.

    >>> release_memory()
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_bytes(pid: int, root: Path = _ROOT) -> int | None:
    """Return the largest number of resident bytes that a process, without its descendants, has had so far.

    The result is None where the process does not exist or the system has no /proc.

    Args:
        pid: id of the process, which must be alive.
        root: directory that holds `proc`.

    >>> import os
    >>> (peak_resident_bytes(os.getpid()) or 0) > 0
    True
    """
    return _status_bytes(pid, "VmHWM", root)


def _descendants(pid: int, root: Path) -> list[int]:
    """Return the ids of the descendants of a process, each before its own children.

    Every process on the machine is asked for its parent, because not every kernel lists the children of a process.
    """
    children: dict[int, list[int]] = {}
    for folder in (root / "proc").glob("[0-9]*"):
        # The file holds "pid (name) state parent ...". The name may contain ")", so the text is split at the last ")".
        words = _read_text(folder / "stat").rpartition(")")[2].split()
        if len(words) > 1:
            children.setdefault(int(words[1]), []).append(int(folder.name))
    descendants, queue = [], [pid]
    while queue:
        new = [child for child in children.pop(queue.pop(), []) if child != pid]
        descendants += new
        queue += new
    return descendants


def _status_bytes(pid: int, name: str, root: Path) -> int | None:
    line = re.search(rf"^{name}:\s+(\d+) kB", _read_text(root / f"proc/{pid}/status"), re.MULTILINE)
    return int(line[1]) * 1024 if line else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended, or the system has no such file
        return ""
