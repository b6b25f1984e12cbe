"""Cores are those that affinity and the quotas of control groups leave."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.cpu import cpu_quota, limited_cores, usable_cores

QUOTAS = {"max 100000": None, "200000 100000": 2, "150000 100000": 2, "1 2": 1, "": None, "broken": None, "1 0": None}


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


@pytest.mark.parametrize(("text", "cores"), QUOTAS.items())
def test_the_quota_of_version_2_is_rounded_up(text: str, cores: int | None, tmp_path: Path) -> None:
    write(tmp_path, "sys/fs/cgroup/cpu.max", text)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("300000", 3), ("1000", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_version_1_is_rounded_up(mount: str, quota: str, cores: int | None, tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", f"5:devices:/\n4:{mount}:/host/container\n")
    write(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", quota)
    write(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_period_us", "100000")
    assert cpu_quota(tmp_path) == cores


@given(quotas=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_lowest_quota_of_all_groups_above_counts(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int]
) -> None:
    root, path = tmp_path_factory.mktemp("groups"), ""
    for place, quota in enumerate(quotas):
        path = f"{path}/{place}"
        write(root, f"sys/fs/cgroup{path}/cpu.max", f"{quota}00000 100000")
    write(root, "sys/fs/cgroup/other/cpu.max", "1 100000")
    write(root, "proc/self/cgroup", f"0::{path}")
    assert cpu_quota(root) == min(quotas)


@pytest.mark.parametrize(
    ("allowed", "machine", "quota", "cores"),
    [
        ({0, 1}, 2, "max 100000", None),
        ({0, 1}, 2, "200000 100000", None),
        ({0, 1}, 2, "100000 100000", 1),
        ({1}, 2, "max 100000", 1),
        ({4, 5, 6}, 64, "max 100000", 3),
        ({4, 5, 6}, 64, "200000 100000", 2),
    ],
)
def test_cores_are_limited_by_affinity_and_by_the_quota(
    allowed: set[int], machine: int, quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
    assert limited_cores(tmp_path) == cores
    assert usable_cores(tmp_path) == (cores or len(allowed))


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads of two cores, of which three threads are allowed."""
    blocks = [f"processor : {thread}\nphysical id : 0\ncore id : {thread // 2}" for thread in range(4)]
    write(tmp_path, "proc/cpuinfo", "\n\n".join(blocks))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert (usable_cores(tmp_path), limited_cores(tmp_path)) == (2, 2)


def test_every_core_counts_where_affinity_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (usable_cores(tmp_path), limited_cores(tmp_path)) == (3, None)
