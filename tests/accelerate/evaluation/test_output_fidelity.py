"""Comparison of outputs: per noise level, by channel, by class, and only where the baseline's answer has a signal."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.evaluation.accuracy import UNPROVEN, find_violation
from stillhouse.accelerate.evaluation.output_fidelity import (
    ALL_INPUTS,
    MIN_EQUAL_SQNR,
    NO_KINDS,
    OutputKinds,
    OutputMismatch,
    channel_axis,
    check_rows,
    class_agreement,
    compare_channels,
    compare_outputs,
    mixed_axis,
    read_output_kinds,
)
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import Trial
from stillhouse.measure.fidelity import compare_tensors
from tests.accelerate.networks import NETWORKS

RNG = np.random.default_rng(0)
CLEAN = RNG.standard_normal((4, 1000)).astype(np.float32)
UNIT = OutputKinds(unit=frozenset({"out"}))


def probes(tensors: NDArray[np.float32], name: str = "out") -> list[Probe]:
    return [Probe(f"noise 0.{i // 2}, prompt {i % 2}", {name: row}) for i, row in enumerate(tensors)]


def single(*tensors: NDArray[np.generic]) -> list[Probe]:
    return [Probe(f"input {number}", {"out": tensor}) for number, tensor in enumerate(tensors)]


def judged(reference: list[Probe], outputs: list[Probe], candidate: Candidate, kinds: OutputKinds = NO_KINDS) -> str:
    compared = compare_outputs(reference, outputs, kinds)
    trial = Trial(candidate, "accepted", fidelity=compared.fidelity, unproven=compared.unproven)
    return find_violation(trial, Bounds(min_sqnr=20.0))


INT8 = Candidate("network", "onnxruntime", "int8-static")
OTHER_F32 = Candidate("network", "openvino")


def test_each_noise_level_has_its_own_figure() -> None:
    noisy = CLEAN.copy()
    noisy[2:] += 0.1 * RNG.standard_normal((2, 1000)).astype(np.float32)
    fidelity = compare_outputs(probes(CLEAN), probes(noisy)).fidelity
    assert list(fidelity) == ["noise 0.0", "noise 0.1"]
    assert fidelity["noise 0.0"].sqnr == 999.0
    assert fidelity["noise 0.1"].sqnr == pytest.approx(20.0, abs=0.6)  # noise of a tenth is 20 dB below the signal


def test_an_answer_of_another_form_is_refused() -> None:
    with pytest.raises(
        OutputMismatch, match="the network's outputs are other; allowed: out, the outputs of the baseline"
    ):
        compare_outputs(probes(CLEAN), probes(CLEAN, "other"))
    with pytest.raises(OutputMismatch, match=r"shape \[999\], the baseline's has \[1000\]"):
        compare_outputs(probes(CLEAN), probes(CLEAN[:, :999]))


def test_fast_on_ones_and_wrong_on_the_rest_is_found() -> None:
    wrong = [Probe(probe.label, {"out": np.ones(1000, np.float32)}) for probe in probes(CLEAN)]
    assert "below the bound" in judged(probes(CLEAN), wrong, INT8)


def detections(axis: int) -> NDArray[np.float32]:
    """Boxes in pixels and one score in a tensor of 5 channels on `axis`; the best score of 2100 anchors is 0.83."""
    boxes = RNG.uniform(0, 320, (4, 2100))
    scores = np.zeros(2100)
    scores[:40] = np.linspace(0.83, 0.1, 40)
    return np.moveaxis(np.array([[*boxes, scores]]), 1, axis).astype(np.float32)


@pytest.mark.parametrize("axis", [1, 2])
def test_dead_scores_beside_boxes_in_pixels_are_found(axis: int) -> None:
    reference = detections(axis)
    dead = reference.copy()
    np.moveaxis(dead, axis, 0)[4] *= 0.006 / 0.83
    whole = 10 * np.log10(np.square(reference).sum() / np.square(reference - dead).sum())
    assert whole > 60  # what one SQNR of the whole tensor says
    fidelity = compare_outputs(single(reference), single(dead)).fidelity["input 0"]
    assert fidelity.sqnr == pytest.approx(-20 * np.log10(1 - 0.006 / 0.83), abs=0.01)
    assert fidelity.place == f"channel 4 of axis {axis}"
    assert f"in channel 4 of axis {axis} is below the bound" in judged(single(reference), single(dead), INT8)


def test_scores_of_many_classes_beside_boxes_are_judged_together() -> None:
    """600 classes of a detector: 31 dB of all, and half of the detections had another class."""
    scores = RNG.beta(0.05, 2, (600, 400))
    reference = np.concatenate([RNG.uniform(0, 320, (4, 400)), scores])[None].astype(np.float32)
    noisy = reference.copy()
    noisy[:, 4:] += 0.3 * scores.max() * RNG.standard_normal((600, 400)).astype(np.float32)
    fidelity = compare_outputs(single(reference), single(noisy)).fidelity["input 0"]
    assert compare_tensors(reference, noisy).sqnr > 30.0
    assert fidelity.sqnr < 10.0
    assert fidelity.place == "the scores along axis 1"


def test_channels_last_are_found_by_what_they_hold() -> None:
    """A detector of [rows, height, width, anchors]: the second axis is a row of the picture."""
    boxes, scores = RNG.uniform(0, 320, (1, 20, 20, 4)), RNG.uniform(0, 0.9, (1, 20, 20, 1))
    reference = np.concatenate([boxes, scores], axis=-1).astype(np.float32)
    dead = reference.copy()
    dead[..., 4] *= 0.01
    assert mixed_axis(reference) == 3
    assert compare_channels(reference, dead)[1] == "channel 4 of axis 3"


def test_an_angle_beside_large_boxes_carries_signal() -> None:
    boxes, angles = RNG.uniform(0, 3210, (1, 4, 300)), RNG.uniform(-1.5, 1.5, (1, 1, 300))
    reference = np.concatenate([boxes, angles], axis=1).astype(np.float32)
    wrong = reference.copy()
    wrong[:, 4] *= -1
    sqnr, place = compare_channels(reference, wrong)
    assert (round(sqnr, 2), place) == (-6.02, "channel 4 of axis 1")


def test_an_age_beside_two_probabilities_is_judged_apart() -> None:
    """Three numbers for each input, pooled over all inputs: the age had all the power."""
    ages, chances = RNG.uniform(20, 80, 12), RNG.uniform(0.6, 0.95, 12)
    reference = [np.array([[age, chance, 1 - chance]], np.float32) for age, chance in zip(ages, chances, strict=True)]
    swapped = [tensor[:, [0, 2, 1]] for tensor in reference]
    fidelity = compare_outputs(single(*reference), single(*swapped)).fidelity[ALL_INPUTS]
    assert fidelity.sqnr < 10.0
    assert fidelity.agreement == 0.0


def test_a_common_offset_is_no_signal() -> None:
    """288 kelvin with a spread of 0.2: a constant answer has 63 dB."""
    reference = (288 + 0.18 * RNG.standard_normal((4, 1000))).astype(np.float32)
    constant = np.full_like(reference, reference.mean())
    assert compare_tensors(reference, constant).sqnr > 60.0
    assert all(value.sqnr < 1.0 for value in compare_outputs(probes(reference), probes(constant)).fidelity.values())
    rounded = compare_outputs(probes(reference), probes(reference + np.float32(3e-5))).fidelity
    assert all(value.sqnr > MIN_EQUAL_SQNR for value in rounded.values())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_maps_of_classes_must_agree_in_any_type(dtype: type[np.generic]) -> None:
    classes = RNG.integers(0, 2 if dtype is np.bool_ else 5, (1, 64, 64)).astype(dtype)
    other = classes.copy()
    other[0, :4] = np.roll(classes[0, :4], 1, 0)
    fidelity = compare_outputs(single(classes), single(other)).fidelity["input 0"]
    assert fidelity.agreement == np.mean(classes == other)
    assert fidelity.place == ""  # a column of a picture is no channel


def test_pictures_in_uint8_are_no_classes() -> None:
    picture = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert class_agreement(picture, picture // 2 * 2) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_integers_that_never_change_prove_nothing(dtype: type[np.generic]) -> None:
    background = np.zeros((1, 64, 64), dtype)
    assert compare_outputs(single(background), single(background)).unproven == ("out",)


def test_scores_of_a_class_that_the_inputs_lack_are_not_compared_with_themselves() -> None:
    """Their relative error is that of numbers near zero, and means nothing."""
    reference = np.concatenate([detections(1), np.full((1, 1, 2100), 1e-4, np.float32)], axis=1)
    other = reference.copy()
    other[:, 5] = 3e-4
    assert compare_channels(reference, other) == (999.0, "")


def test_scores_that_are_nearly_all_zero_are_compared_with_their_peak() -> None:
    """One of 2100 anchors has 0.6; errors of 0.02 of all anchors add up to more power, and change no decision."""
    reference = detections(1)
    reference[:, 4] = 0
    reference[0, 4, 7] = 0.6
    other = reference.copy()
    other[:, 4] += 0.02
    assert compare_tensors(reference[:, 4], other[:, 4]).sqnr < 0
    assert compare_channels(reference, other)[0] == pytest.approx(20 * np.log10(0.6 / 0.02), abs=1e-3)
    other[0, 4, 7] = 0.1
    assert compare_channels(reference, other)[0] == pytest.approx(20 * np.log10(0.6 / 0.5), abs=1e-3)


@given(
    arrays(np.float32, (1, 6, 40), elements=st.floats(-100, 100, width=32)),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5]),
)
def test_no_channel_is_better_hidden_than_alone(tensor: NDArray[np.float32], channel: int, share: float) -> None:
    """Whatever the scales of the channels, a channel that varies and is lost has an SQNR of its own."""
    tensor = tensor + np.linspace(0, 50, 40, dtype=np.float32)
    damaged = tensor.copy()
    damaged[0, channel] *= share
    sqnr, place = compare_channels(tensor, damaged)
    assert sqnr == pytest.approx(-20 * np.log10(1 - share), abs=1e-3)
    assert place == f"channel {channel} of axis 1"


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 84, 2100), 1),
        ((1, 25200, 85), 2),
        ((2, 4, 64, 64), 1),
        ((1, 64, 64, 3), 3),
        ((1, 3, 80, 80, 85), 4),
        ((300, 6), 1),
        ((1, 1000), None),
        ((1, 77, 768), 1),
        ((1, 1, 320, 320), None),
        ((4,), None),
        ((0, 6), None),
    ],
)
def test_channels_are_the_axis_that_detectors_and_latents_use(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


def test_another_class_is_found_where_the_numbers_are_near() -> None:
    """Three of two hundred positions change their class by a tenth: the SQNR is above every usual bound."""
    scores = np.zeros((1, 200, 20))
    first, second = np.arange(200) % 20, (np.arange(200) + 1) % 20
    scores[0, range(200), first], scores[0, range(200), second] = 0.55, 0.45
    other = scores.copy()
    other[0, :60:20, 0], other[0, :60:20, 1] = 0.45, 0.55
    assert class_agreement(scores, other) == pytest.approx(0.985)
    assert "98.5% of the classes agree" in judged(single(scores), single(other), INT8)


def test_a_tie_of_two_classes_is_no_disagreement() -> None:
    reference, other = np.array([[0.499, 0.501, 0.0]]), np.array([[0.501, 0.499, 0.0]])
    assert class_agreement(reference, other) == 1.0


def test_logits_tie_by_their_probabilities_whatever_their_range() -> None:
    """A range of 55, as a text recogniser has: a difference of 1 is a factor of 2.7 in probability."""
    logits = np.zeros((1, 3))
    logits[0] = [20.0, 21.0, -34.0]
    assert class_agreement(logits, logits[:, [1, 0, 2]], are_logits=True) == 0.0
    logits[0, 0] = 20.97
    assert class_agreement(logits, logits[:, [1, 0, 2]], are_logits=True) == 1.0


def test_blanks_of_a_recogniser_hide_no_wrong_letter() -> None:
    letters = np.where(np.arange(1000) % 50 == 0, 1 + np.arange(1000) % 7, 0)
    scores, wrong = np.eye(9)[letters], letters.copy()
    wrong[[50, 150]] = 8
    assert class_agreement(scores, np.eye(9)[wrong]) == 0.9  # 2 of 20 letters, 2 of 1,000 rows
    assert class_agreement(np.eye(9)[0 * letters], np.eye(9)[0 * letters]) == 1.0  # a picture without text


def test_rows_that_the_original_leaves_undefined_are_not_compared() -> None:
    undefined = np.full((2, 3), -np.inf)
    logits = np.array([[1.0, 3.0, -np.inf], *undefined])
    assert class_agreement(logits, logits, are_logits=True) == 1.0
    assert class_agreement(undefined, undefined, are_logits=True) is None


def test_integers_agree_only_where_they_are_equal() -> None:
    labels = np.arange(100)
    assert class_agreement(labels, labels + (labels < 3)) == 0.97
    assert "97.0% of the classes agree" in judged(single(labels), single(labels + (labels < 3)), INT8)


def test_a_large_offset_of_all_logits_hides_no_error_either() -> None:
    """It is taken from all rows first; the reason names the same place."""
    logits = 500 + RNG.standard_normal((1, 200))
    kinds = OutputKinds(linear=frozenset({"out"}))
    reason = judged(single(logits), single(np.full_like(logits, 500)), INT8, kinds)
    assert "in the differences in each row is below the bound" in reason


def test_an_offset_of_all_logits_hides_no_error() -> None:
    logits = 100 + RNG.standard_normal((1, 200))
    other = np.full_like(logits, 100)
    assert compare_tensors(logits, other).sqnr > 35
    kinds = OutputKinds(linear=frozenset({"out"}))
    assert "in the differences in each row is below the bound" in judged(single(logits), single(other), INT8, kinds)
    assert not judged(single(logits), single(logits + 0.01), INT8, kinds)


def test_logits_count_as_classes_and_embeddings_do_not() -> None:
    logits, other = np.array([[1.0, 3.0, 2.0]]), np.array([[1.0, 2.0, 3.0]])
    assert class_agreement(logits, other) is None
    assert class_agreement(logits, other, are_logits=True) == 0.0


@pytest.mark.parametrize(
    "reference",
    [np.full((1, 1, 64, 64), 3e-3), np.linspace(0, 3e-3, 4096).reshape(1, 1, 64, 64), np.zeros((0, 6))],
    ids=["constant", "tiny beside its range", "empty"],
)
def test_an_answer_without_signal_proves_nothing(reference: NDArray[np.float64]) -> None:
    """Neither that a network of other arithmetic is right, nor that the same arithmetic elsewhere is wrong."""
    near = reference + 2e-5 * RNG.standard_normal(reference.shape)
    assert compare_outputs(single(reference), single(near), UNIT).unproven == ("out",)
    assert judged(single(reference), single(near), INT8, UNIT) == UNPROVEN.format("out")
    assert judged(single(reference), single(reference), INT8, UNIT) == UNPROVEN.format("out")
    assert not judged(single(reference), single(near), OTHER_F32, UNIT)


def test_one_probe_with_signal_is_enough() -> None:
    weak, strong = np.full((1, 1, 64, 64), 1e-3), RNG.uniform(0, 1, (1, 1, 64, 64))
    assert not judged(single(weak, strong), single(weak + 1e-4, strong + 1e-3), INT8, UNIT)
    assert "below the bound" in judged(single(weak, strong), single(weak, 0 * strong), INT8, UNIT)


def test_an_empty_answer_is_another_answer() -> None:
    with pytest.raises(OutputMismatch, match=r"shape \[0, 6\], the baseline's has \[3, 6\] for input 0"):
        compare_outputs(single(np.ones((3, 6))), single(np.ones((0, 6))))


@given(arrays(np.float64, (8, 5), elements=st.floats(-1, 1, width=32)), st.floats(0, 1e3, width=32))
def test_one_answer_for_all_rows_is_found_however_alike_they_are(rows: NDArray[np.float64], offset: float) -> None:
    rows = offset + rows
    mixed = np.broadcast_to(rows.mean(0), rows.shape)
    check_rows(Probe("8 rows together", {"out": rows}), Probe("8 rows together", {"out": rows}))
    if compare_tensors(rows, mixed).sqnr < 60:  # otherwise the rows are equal for float32
        with pytest.raises(OutputMismatch, match="by 100% of the differences between rows"):
            check_rows(Probe("8 rows together", {"out": rows}), Probe("8 rows together", {"out": mixed}))


def test_single_numbers_are_compared_over_all_inputs() -> None:
    """The probability of speech of each input: one number has no power of its own."""
    reference = single(*(np.array([[value]]) for value in (0.1, 0.9, 0.5)))
    other = single(*(np.array([[value]]) for value in (0.1, 0.9, 0.4)))
    fidelity = compare_outputs(reference, other, UNIT).fidelity
    assert list(fidelity) == [ALL_INPUTS]
    assert fidelity[ALL_INPUTS].sqnr == pytest.approx(10 * np.log10((0.01 + 0.81 + 0.25) / 0.01))


def test_the_last_nodes_say_which_outputs_are_probabilities_and_logits(tmp_path: Path) -> None:
    names = ["probabilities", "logits", "text_embeds", "plain"]
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Transpose", ["s"], ["probabilities"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["logits"]),
        helper.make_node("MatMul", ["x", "w"], ["text_embeds"]),
        helper.make_node("Add", ["x", "x"], ["plain"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", *names)]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4).ravel()),
        helper.make_tensor("b", TensorProto.FLOAT, [4], np.zeros(4)),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights)), tmp_path / "m.onnx")
    kinds = read_output_kinds(tmp_path / "m.onnx")
    assert kinds == OutputKinds(unit=frozenset({"probabilities"}), linear=frozenset({"logits", "text_embeds"}))
    assert read_output_kinds(NETWORKS["encoder"](tmp_path / "encoder.onnx")) == NO_KINDS


def test_a_small_output_for_one_input_keeps_its_label() -> None:
    """Otherwise the figure for another shape would replace that of all inputs."""
    scores = np.array([0.2, 0.8], np.float32)
    assert list(compare_outputs([Probe("x 2x9", {"out": scores})], [Probe("x 2x9", {"out": scores})]).fidelity) == [
        "x 2x9"
    ]
    assert list(compare_outputs(single(scores, scores), single(scores, scores)).fidelity) == [ALL_INPUTS]


def test_where_scores_are_not_judged_integers_must_still_be_equal() -> None:
    """Inputs of other shapes are joined pieces: a classifier hesitates there, but ArgMax inside the graph counts."""
    scores, labels = np.eye(9)[RNG.integers(0, 9, 100)].astype(np.float32), np.arange(100)
    expected = [Probe("x 2x9", {"scores": scores, "labels": labels})]
    actual = [Probe("x 2x9", {"scores": np.roll(scores, 1, -1), "labels": labels + (labels < 3)})]
    fidelity = compare_outputs(expected, actual, judge_scores=False).fidelity
    assert fidelity["x 2x9, labels"].agreement == 0.97
    assert fidelity["x 2x9, scores"].agreement is None
    assert fidelity["x 2x9, scores"].sqnr < 0


def write_kinds(path: Path) -> Path:
    """Four outputs: probabilities scaled up, of two levels joined, a constant, and random numbers."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["chances"]),
        helper.make_node("Resize", ["chances", "", "scales"], ["scaled"], mode="nearest"),
        helper.make_node("Concat", ["chances", "chances"], ["joined"], axis=1),
        helper.make_node("Exp", ["temperature"], ["scale"]),
        helper.make_node("RandomNormal", [], ["noise"], shape=[2]),
    ]
    names = ("scaled", "joined", "scale", "noise")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "temperature": np.array(2.5, np.float32)}
    graph = helper.make_graph(
        nodes,
        "kinds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        outputs,
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_kinds_are_found_through_operators_that_keep_the_range(tmp_path: Path) -> None:
    kinds = read_output_kinds(write_kinds(tmp_path / "kinds.onnx"))
    assert kinds == OutputKinds(unit=frozenset({"scaled", "joined"}), constant=frozenset({"scale"}))


def test_an_output_that_no_input_reaches_needs_no_proof() -> None:
    scale = np.full(1, 100.0, np.float32)
    kinds = OutputKinds(constant=frozenset({"out"}))
    assert compare_outputs(single(scale, scale), single(scale, scale), kinds).unproven == ()
    assert compare_outputs(single(scale, scale), single(scale, scale)).unproven == ("out",)


@pytest.mark.parametrize(
    ("name", "classes", "are_classes"),
    [("out", 8210, True), ("out", 1000, True), ("logits", 32, True), ("out", 768, False), ("text_embeds", 100, False)],
)
def test_a_linear_layer_is_a_classifier_by_its_name_or_its_number_of_outputs(
    name: str, classes: int, are_classes: bool
) -> None:
    """A recogniser of text without a softmax: 23 dB, and two of a hundred characters are others."""
    logits = RNG.standard_normal((100, 1, classes)).astype(np.float32)
    logits[:, 0, 0] = 9.0
    other = logits.copy()
    other[:2, 0, 1] = 9.9
    expected, actual = ([Probe("input 0", {name: tensor})] for tensor in (logits, other))
    fidelity = compare_outputs(expected, actual, OutputKinds(linear=frozenset({name}))).fidelity["input 0"]
    assert fidelity.agreement == (0.98 if are_classes else None)
