"""Description of this machine: the facts on which measured times depend."""

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stillhouse.cpu import processor_flags, read_processors, read_text, usable_cores
from stillhouse.gpu import Gpu, find_gpus

# These instruction set extensions of x86 and ARM decide which precisions are fast. They are spelled as Linux does,
# since they are looked up in /proc/cpuinfo.
_INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """The part of a machine that this process may use.

    Args:
        processor: model name of the processor.
        cores: physical cores that affinity and the container's quota allow.
        memory: bytes of main memory, or the container's limit if that is lower; None where the system reports neither.
        instructions: instruction set extensions of the processor that decide which precisions are fast, such as
            "avx512_bf16".
        system: operating system and architecture, such as "Linux x86_64".
        python: version of Python, such as "3.11".
        gpus: GPUs that this process may use.
    """

    processor: str
    cores: int
    memory: int | None
    instructions: tuple[str, ...]
    system: str
    python: str
    gpus: tuple[Gpu, ...] = ()

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits that are equal for machines whose measurements can be compared.

        Memory is rounded to GiB, since the kernel reserves a part that changes from one boot to the next.
        """
        memory = None if self.memory is None else round(self.memory / _GIB)
        facts: tuple[Any, ...] = (self.processor, self.cores, memory, self.instructions, self.system, self.python)
        if self.gpus:
            facts = (*facts, *((gpu.name, round(gpu.memory / _GIB), gpu.capability) for gpu in self.gpus))
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def read_machine(root: Path = Path("/")) -> Machine:
    """Return a description of this machine, as far as the system reports it.

    On Linux, `root` is the directory that holds `proc` and `sys`. Python's standard library describes other systems.

    >>> read_machine().cores >= 1
    True
    """
    processors = read_processors(root)
    first = processors[0] if processors else {}
    flags = processor_flags(root)
    return Machine(
        processor=first.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(root),
        memory=_memory(root),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=".".join(platform.python_version_tuple()[:2]),
        gpus=find_gpus(),
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages by name. Packages that are not installed are left out.

    >>> installed_versions(["no-such-package"])
    {}
    """
    versions = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _memory(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    limit = read_text(root / "sys/fs/cgroup/memory.max").strip()
    sizes = [int(total[1]) * 1024] if total else _sysconf_memory()
    return min([*sizes, int(limit)] if limit.isdigit() else sizes, default=None)


def _sysconf_memory() -> list[int]:
    try:
        return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return []
