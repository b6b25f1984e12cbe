"""The processor cores that this process may use: by affinity, and by the quota of its control groups (cgroups)."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of physical cores that affinity and the quota of control groups allow, at least 1.

    A quota of one and a half cores counts as two. Two threads of one core count as one. On Linux, `root` is the
    directory that holds `proc` and `sys`. Where the system does not describe its cores, logical processors are counted.
    """
    allowed = _allowed_processors()
    usable = [block for block in read_processors(root) if block["processor"] in map(str, allowed)]
    cores = {(block.get("physical id"), block.get("core id", block["processor"])) for block in usable}
    count = len(cores) or len(allowed)
    return max(1, min(count, cpu_quota(root) or count))


def limited_cores(root: Path = _ROOT) -> int | None:
    """Return `usable_cores` where affinity or a quota allows less than the machine has; None where all may be used.

    Runtimes start a thread for each core of the machine, unless they are told this number.
    """
    allowed, quota = len(_allowed_processors()), cpu_quota(root)
    is_limited = allowed < (os.cpu_count() or 1) or (quota is not None and quota < allowed)
    return usable_cores(root) if is_limited else None


def cpu_quota(root: Path = _ROOT) -> int | None:
    """Return the number of cores whose time control groups allow, rounded up; None where nothing limits it.

    The lowest quota of the process's own group and all groups above it counts. Version 2 of control groups keeps the
    quota in `cpu.max`, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (docs.kernel.org, "Control Group v2",
    and "CFS Bandwidth Control").
    """
    quotas = [math.ceil(quota / period) for quota, period in _quotas(root) if quota > 0 and period > 0]
    return min(quotas, default=None)


def read_processors(root: Path = _ROOT) -> list[dict[str, str]]:
    """Return the fields of `root`/proc/cpuinfo by name, one mapping for each logical processor; empty without it."""
    blocks = re.split(r"\n\s*\n", read_text(root / "proc/cpuinfo"))
    pairs = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    fields = [{key.strip(): value.strip() for key, _, value in block} for block in pairs]
    return [block for block in fields if "processor" in block]


def processor_flags(root: Path = _ROOT) -> frozenset[str]:
    """Return the instruction set extensions of the processor as Linux names them, such as avx2; empty if unknown."""
    processors = read_processors(root)
    first = processors[0] if processors else {}
    return frozenset(f"{first.get('flags', '')} {first.get('Features', '')}".split())


def read_text(path: Path) -> str:
    """Return the text of a file of the system; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _allowed_processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yield quota and period, in microseconds, of each control group that has a quota, the process's own and above."""
    for line in ["0::/", "0:cpu:/", *read_text(root / "proc/self/cgroup").splitlines()]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = {f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"} if controllers else {"sys/fs/cgroup"}
        for group in (root / mount / path.lstrip("/") for mount in sorted(mounts)):
            for above in [group, *group.parents][: len(Path(path).parts)]:
                yield from _read_quota(above)


def _read_quota(group: Path) -> Iterator[tuple[int, int]]:
    texts = read_text(group / "cpu.max").split() or [
        read_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(texts) == 2 and all(text.isdigit() for text in texts):
        yield int(texts[0]), int(texts[1])
