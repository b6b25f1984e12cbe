"""Memory of a process and its descendants, from files as Linux writes them, and from the real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.measure.memory import peak_resident_bytes, resident_bytes

KIB, MIB = 1 << 10, 1 << 20
CHILD = """
import sys
block = bytearray({size})
block[:: 4096] = b"x" * len(block[:: 4096])
print("ready", flush=True)
sys.stdin.read()
"""


def process(root: Path, pid: int, parent: int, kib: int | None, name: str = "python") -> None:
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} 0 -1 4194304\n")
    sizes = "" if kib is None else f"VmHWM:\t{2 * kib} kB\nVmRSS:\t    {kib} kB\n"
    (folder / "status").write_text(f"Name:\t{name}\nVmSize:\t999999 kB\n{sizes}Threads:\t1\n")


def test_a_tree_is_summed_and_strangers_are_left_out(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, 20)
    process(tmp_path, 12, 10, 3)
    process(tmp_path, 13, 12, 1)
    process(tmp_path, 99, 1, 7000)
    (tmp_path / "proc/meminfo").touch()
    assert resident_bytes(10, tmp_path) == 124 * KIB
    assert resident_bytes(12, tmp_path) == 4 * KIB
    assert peak_resident_bytes(10, tmp_path) == 200 * KIB


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100, "a) S 99 (b c")
    process(tmp_path, 11, 10, 20, "VmRSS: 5 kB) (")
    assert resident_bytes(10, tmp_path) == 120 * KIB


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, None)
    assert resident_bytes(10, tmp_path) == 100 * KIB
    assert peak_resident_bytes(11, tmp_path) is None


def test_a_process_that_ends_while_we_look_counts_nothing(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, 20)
    (tmp_path / "proc/11/status").unlink()
    (tmp_path / "proc/12").mkdir()
    assert resident_bytes(10, tmp_path) == 100 * KIB


@pytest.mark.parametrize("pid", [10, 2**30])
def test_a_dead_process_or_another_system_is_no_error(tmp_path: Path, pid: int) -> None:
    assert (resident_bytes(pid, tmp_path), peak_resident_bytes(pid, tmp_path)) == (0, None)


def test_parents_that_go_round_in_a_ring_end(tmp_path: Path) -> None:
    """Ids are used again while the files are read one after the other."""
    process(tmp_path, 10, 12, 1)
    process(tmp_path, 11, 10, 2)
    process(tmp_path, 12, 11, 4)
    assert resident_bytes(10, tmp_path) == 7 * KIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a system without /proc")
def test_a_real_child_and_its_memory_are_seen() -> None:
    before = resident_bytes(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(size=64 * MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        held, most = resident_bytes(child.pid), peak_resident_bytes(child.pid)
        assert 64 * MIB < held < 128 * MIB
        assert most is not None and 64 * MIB < most < 128 * MIB
        assert resident_bytes(os.getpid()) > before + 60 * MIB
        child.communicate()
    assert (resident_bytes(child.pid), peak_resident_bytes(child.pid)) == (0, None)
