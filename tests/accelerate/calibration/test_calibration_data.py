"""Probes: recorded inputs, one call at a time or batched."""

from pathlib import Path

import numpy as np

from stillhouse.accelerate.calibration.calibration_data import (
    Probe,
    gather_rows,
    interleave_rows,
    read_probes,
    without_probes,
    write_probes,
)


def numbered(first: int, rows: int, width: int = 2) -> Probe:
    """Rows with consecutive numbers, each constant."""
    numbers = np.arange(first, first + rows, dtype=np.float32)
    return Probe("one", {"x": np.repeat(numbers[:, None], width, axis=1), "t": numbers})


def test_rows_of_all_probes_go_together_in_turns() -> None:
    probes = [numbered(0, 2), numbered(10, 2), numbered(20, 2)]
    batch = gather_rows(probes, interleave_rows(probes, 8))
    assert batch.label == "8 rows together"
    assert batch.feeds["t"].tolist() == [0, 10, 20, 1, 11, 21, 0, 10], "and again from the first row on"
    assert batch.feeds["x"].shape == (8, 2) and batch.feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(batch.feeds["x"][:, 0], batch.feeds["t"])


def test_probes_are_read_as_they_were_written(tmp_path: Path) -> None:
    words = np.array([["one", "zwölf"]], object)
    probes = [
        Probe("a, b", {"x": np.arange(3.0), "words": words}),
        Probe("c", {"x": np.zeros(0), "words": words[:, :1]}),
    ]
    write_probes(tmp_path / "folder" / "probes.npz", probes)
    for probe, read in zip(probes, read_probes(tmp_path / "folder" / "probes.npz"), strict=True):
        assert probe.label == read.label and probe.feeds.keys() == read.feeds.keys()
        for name, array in probe.feeds.items():
            assert read.feeds[name].dtype == array.dtype and np.array_equal(read.feeds[name], array)


def test_texts_are_compared_by_what_they_say() -> None:
    words = [Probe(text, {"words": np.array([text], object)}) for text in ("one", "two")]
    again = Probe("", {"words": np.array(["".join(("o", "ne"))], object)})
    assert without_probes([*words, again], [words[0]]) == [words[1]]


def test_probes_of_another_size_stay_out() -> None:
    probes = [numbered(0, 1), numbered(10, 1, width=3), numbered(20, 1)]
    assert gather_rows(probes, interleave_rows(probes, 3)).feeds["t"].tolist() == [0, 20, 0]


def test_answers_are_gathered_as_what_they_answer() -> None:
    """Outputs are gathered like their inputs, whatever their sizes."""
    probes = [numbered(0, 2), numbered(10, 2, width=3), numbered(20, 2)]
    answers = [Probe(probe.label, {"y": 2 * probe.feeds["t"]}) for probe in probes]
    indices = interleave_rows(probes, 4)
    np.testing.assert_array_equal(gather_rows(answers, indices).feeds["y"], 2 * gather_rows(probes, indices).feeds["t"])
