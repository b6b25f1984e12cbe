"""Options of a sweep: the checksum decides whether earlier measurements may be reused."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.accelerate.evaluation.latency import FINAL_BUDGET, TimingBudget
from stillhouse.accelerate.options import AccelerateOptions, checksum_options

DEFAULT = AccelerateOptions()


@pytest.mark.parametrize(
    "changed",
    [
        replace(DEFAULT, final_timing_budget=TimingBudget(min_rounds=2, max_rounds=2)),
        replace(DEFAULT, timing_budget=TimingBudget()),
        replace(DEFAULT, timing_budget=TimingBudget(round_seconds=0.01)),
        replace(DEFAULT, threads=1),
        replace(DEFAULT, device="cpu"),
        replace(DEFAULT, pixels="0..1"),
    ],
)
def test_what_influences_measurements_changes_the_checksum(changed: AccelerateOptions) -> None:
    assert checksum_options(changed) != checksum_options(DEFAULT)


@pytest.mark.parametrize(
    "equal", [replace(DEFAULT, final_timing_budget=replace(FINAL_BUDGET)), replace(DEFAULT, goal="memory")]
)
def test_what_does_not_leaves_it(equal: AccelerateOptions) -> None:
    assert checksum_options(equal) == checksum_options(DEFAULT)


def test_a_folder_of_inputs_counts_by_its_files(tmp_path: Path) -> None:
    folder = AccelerateOptions(inputs=tmp_path)
    (tmp_path / "a.png").write_bytes(b"1")
    checksums = [checksum_options(folder)]
    for name, content in (("a.png", b"2"), ("b.png", b"2"), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
        checksums.append(checksum_options(folder))
    assert len(set(checksums)) == 4 and checksum_options(folder) == checksums[-1]
