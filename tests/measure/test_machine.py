"""The machine's record: read from Linux's own files, and stable enough to compare figures by."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.gpu import Gpu
from stillhouse.measure.machine import Machine, read_machine

XEON = """processor\t: {n}
model name\t: Intel(R) Xeon(R) Platinum 8488C
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu sse avx2 fma avx512f avx512_bf16 amx_tile amx_int8 amx_bf16 avx512_vnni f16c

"""
GRAVITON = "processor\t: {n}\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd asimddp bf16 i8mm sve\n\n"
GIB = 1 << 30


def xeon(threads: int = 8) -> str:
    """Two sockets of two cores of two threads each; the second thread of a core comes `threads // 2` later."""
    half = threads // 2
    return "".join(XEON.format(n=n, socket=n % half // 2, core=n % half % 2) for n in range(threads))


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(xeon())
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16777216 kB\nMemFree:         1 kB\n")
    return tmp_path


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_reads_processor_memory_and_instructions(linux: Path) -> None:
    here = read_machine(linux)
    assert here.processor == "Intel(R) Xeon(R) Platinum 8488C"
    assert here.memory == 16 * GIB
    assert here.instructions == (
        *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
    )


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [(set(range(8)), 4), ({0, 1, 2, 3}, 4), ({0, 4}, 1), ({0, 2}, 2), ({3}, 1)],
)
def test_counts_the_physical_cores_that_affinity_leaves(
    linux: Path, allowed: set[int], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert read_machine(linux).cores == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1 2", 1)]
)
def test_a_container_has_no_more_cores_than_its_quota(linux: Path, quota: str, cores: int) -> None:
    (linux / "sys/fs/cgroup/cpu.max").write_text(f"{quota}\n")
    assert read_machine(linux).cores == cores


@pytest.mark.parametrize(("limit", "memory"), [("max", 16 * GIB), (str(2 * GIB), 2 * GIB), (str(99 * GIB), 16 * GIB)])
def test_a_container_has_no_more_memory_than_its_limit(linux: Path, limit: str, memory: int) -> None:
    (linux / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    assert read_machine(linux).memory == memory


def test_reads_arm(linux: Path) -> None:
    (linux / "proc/cpuinfo").write_text("".join(GRAVITON.format(n=n) for n in range(4)))
    here = read_machine(linux)
    assert (here.cores, here.instructions) == (4, ("asimd", "asimddp", "i8mm", "bf16", "sve"))
    assert here.processor


def test_a_system_without_these_files_still_has_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    here = read_machine(tmp_path)
    assert (here.cores, here.memory, here.instructions) == (3, None, ())
    assert here.processor and here.system and here.python.count(".") == 1


H200 = Gpu("NVIDIA H200", 141 * GIB, "9.0")


def test_the_fingerprint_is_stable_and_sees_what_changes_figures(linux: Path) -> None:
    here = read_machine(linux)
    assert here.fingerprint() == read_machine(linux).fingerprint()
    assert len(here.fingerprint()) == 12 and int(here.fingerprint(), 16) >= 0
    assert replace(here, memory=16 * GIB - 5_000_000).fingerprint() == here.fingerprint()
    others = [
        replace(here, processor="AMD EPYC"),
        replace(here, cores=2),
        replace(here, memory=32 * GIB),
        replace(here, memory=None),
        replace(here, instructions=("avx2",)),
        replace(here, python="3.12"),
        replace(here, gpus=(H200,)),
        replace(here, gpus=(H200, H200)),
        replace(here, gpus=(replace(H200, name="NVIDIA A100"),)),
    ]
    assert len({here.fingerprint(), *(other.fingerprint() for other in others)}) == 10


def test_the_fingerprint_does_not_change_between_releases() -> None:
    """Evidence in old manifests is compared by it."""
    known = Machine("AMD EPYC", 2, 24 * GIB, ("avx2", "fma"), "Linux x86_64", "3.11")
    assert known.fingerprint() == "f0e4f8db4419"
