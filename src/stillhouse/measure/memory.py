"""Memory of a process, read from Linux's /proc. Other systems give no values here."""

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """Return the resident bytes of a process and all its descendants.

    Pages that processes share count once for each. 0 where there is no such process, or no /proc.

    Args:
        pid: the process.
        root: directory that holds `proc`.

    >>> import os
    >>> resident_bytes(os.getpid()) > 0
    True
    """
    return sum(own_resident_bytes(process, root) for process in (pid, *_descendants(pid, root)))


def own_resident_bytes(pid: int, root: Path = _ROOT) -> int:
    """Return the resident bytes of a process without its descendants, 0 as in `resident_bytes`.

    It reads one file; finding descendants reads one file of each process of the machine.

    >>> import os
    >>> own_resident_bytes(os.getpid()) > 0
    True
    """
    return _status_bytes(pid, "VmRSS", root) or 0


def release_memory() -> None:
    """Return unused memory of this process to the system.

    It collects reference cycles, as closed pipelines are, and trims the C library's heap.

    >>> release_memory()
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_bytes(pid: int, root: Path = _ROOT) -> int | None:
    """Return the highest resident bytes of one process so far; None where there is no such process, or no /proc.

    Args:
        pid: the process; it must be alive.
        root: directory that holds `proc`.

    >>> import os
    >>> (peak_resident_bytes(os.getpid()) or 0) > 0
    True
    """
    return _status_bytes(pid, "VmHWM", root)


def _descendants(pid: int, root: Path) -> list[int]:
    """Return the descendants of a process, children first.

    Not every kernel lists the children of a process; each process names its parent.
    """
    children: dict[int, list[int]] = {}
    for folder in (root / "proc").glob("[0-9]*"):
        # "pid (name) state parent ...", where the name may hold anything.
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
