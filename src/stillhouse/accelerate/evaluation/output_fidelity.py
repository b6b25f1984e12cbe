"""Comparison of a network's outputs with those of the baseline: whole, by channel, and by the class they choose.

One SQNR of a whole tensor can hide a dead part: where boxes in pixels and probabilities share a tensor, the boxes have
nearly all of its power. An output that the inputs do not excite proves nothing, so it has no signal here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.backends.graph import load_graph
from stillhouse.backends.inner_graphs import iterate_nodes, nodes_inside
from stillhouse.measure.fidelity import MAX_SQNR, Fidelity, compare_tensors, rescale_sqnr

Tensor: TypeAlias = NDArray[Any]

ALL_INPUTS = "all inputs"
"""Label of a comparison in which an output is pooled over all inputs, since one input gives too few elements."""
MAX_CHANNELS = 128
"""Length from which an axis is not taken for channels by its place alone. YOLO's outputs have 84 and 85, detectors of
faces 16."""
MAX_MIXED = 4096
"""Length from which an axis is not taken for channels where some of them are scores and others are not."""
MIN_EQUAL_SQNR = 60.0
"""Minimum SQNR in dB at which two results of the same arithmetic count as equal: an error of a thousandth, far above
that of another order of float32 sums.
"""
_MAX_ROW_ERROR = 0.1
"""Maximum power of the difference between a row in a batch and the row alone, as a share of that between rows."""
_MIN_ELEMENTS = 16
"""Minimum number of elements for an SQNR of their own. Smaller outputs are pooled over all inputs."""
_MIN_PEAK, _MIN_CHANNEL_PEAK = 0.02, 0.05
"""Share of the known range 1 that an output, and a channel of scores, must reach to carry signal."""
_MIN_CHANNEL_SPREAD = 1e-4
"""Minimum standard deviation of a channel, as a share of the largest value of all channels, to carry signal: an angle
in radians beside boxes of 3,000 pixels has 3e-4."""
_MIN_OWN_SPREAD = 1e-3
"""Minimum standard deviation of a channel, as a share of its own largest value, to carry signal."""
_MIN_OFFSET = 100.0
"""Mean of an output over all inputs, in standard deviations, from which only deviations from the mean count: a constant
answer would have 40 dB."""
_MIN_DEVIATION = 1e-6
"""Minimum standard deviation of an output over all inputs, as a share of its mean: below, it is rounding in float32."""
_TIE_DECIBELS = 0.05
"""Difference in dB within which two ratios count as equal."""
_MIN_STACKED = 4
"""Minimum number of inputs from which the numbers of a small output are judged apart."""
_MAX_CLASSES = 32
"""Maximum number of different values of uint8 tensors that are taken for classes; pictures have more."""
_TIE_MARGIN = 0.02
"""Probability by which two classes may differ and still be a tie, whose order does not count. Logits are compared by
their softmax: 2 % of the range of a recogniser's logits was a factor of 3 in probability."""
_PASS_THROUGH = {
    *("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"),
    *("Resize", "Upsample", "MaxPool", "AveragePool", "Pad", "Split"),
}
_UNIT_RANGE = {"Sigmoid", "HardSigmoid", "Softmax"}
_LINEAR = {"Gemm", "MatMul"}
_CLASSES = re.compile("logit|score|prob|class|cls|label|pred", re.IGNORECASE)
_FEATURES = re.compile("embed|hidden|pool|feature|state|sample|latent|vector", re.IGNORECASE)
_MIN_CLASSES, _WIDTH_MULTIPLE = 20, 16
"""A linear layer without a telling name is taken for logits of classes if it has at least so many outputs, and their
number is no multiple of the second, as widths of hidden layers are.
"""


class OutputMismatch(ValueError):
    """The candidate's outputs have other names or shapes than the baseline's, so they cannot be compared."""


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Result of a comparison of outputs.

    Args:
        fidelity: fidelity by noise level ("noise 0.97") or input ("input 0"), and by output where there are several
            ("noise 0.97, sample").
        unproven: names of the outputs that carry no signal for any input, so that their error means nothing.
    """

    fidelity: Mapping[str, Fidelity]
    unproven: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputKinds:
    """What the last nodes of a graph say about its outputs.

    Args:
        unit: names of outputs that end in a Sigmoid or a Softmax, so that their range is 0 to 1.
        linear: names of outputs that end in a linear layer, as the logits of a classifier do.
        constant: names of outputs that no input reaches, so that no probe can excite them.
    """

    unit: frozenset[str] = frozenset()
    linear: frozenset[str] = frozenset()
    constant: frozenset[str] = frozenset()


NO_KINDS = OutputKinds()
"""Kinds of outputs of which nothing is known."""


def read_output_kinds(graph: Path) -> OutputKinds:
    """Return the kinds of the outputs of an ONNX file."""
    onnx_graph = load_graph(graph).graph
    producers = {output: node for node in onnx_graph.node for output in node.output}

    @cache  # the parts of nested Concats may meet again
    def last_operator(name: str) -> str:
        while (node := producers.get(name)) is not None and node.op_type in _PASS_THROUGH:
            name = node.input[0]
        if node is not None and node.op_type == "Concat":
            (first, *others) = {last_operator(part) for part in node.input}
            return "Concat" if others else first
        if node is not None and node.op_type == "Add":
            sources = [producers[source].op_type for source in node.input if source in producers]
            return "Gemm" if sources == ["MatMul"] else "Add"
        return "" if node is None else str(node.op_type)

    last = {value.name: last_operator(value.name) for value in onnx_graph.output}
    return OutputKinds(
        frozenset(name for name, operator in last.items() if operator in _UNIT_RANGE),
        frozenset(name for name, operator in last.items() if operator in _LINEAR),
        frozenset(last.keys() - _varying_names(onnx_graph)),
    )


def _varying_names(graph: Any) -> set[str]:
    """Return the names of the tensors of a graph, a GraphProto, that an input or a random number reaches."""
    constants = {tensor.name for tensor in graph.initializer}
    varying = {value.name for value in graph.input} - constants
    for node in graph.node:
        read = {name for inner in (node, *nodes_inside(node)) for name in inner.input}
        if read & varying or _is_random(node):
            varying.update(node.output)
    return varying


def random_operators(graph: Path) -> list[str]:
    """Return the names of the operators of an ONNX file that draw random numbers, in the order of their first use."""
    return list(dict.fromkeys(node.op_type for node in iterate_nodes(load_graph(graph).graph) if _is_random(node)))


def _is_random(node: Any) -> bool:
    return "Random" in node.op_type or node.op_type in ("Bernoulli", "Multinomial")


def compare_outputs(
    reference: Sequence[Probe], outputs: Sequence[Probe], kinds: OutputKinds = NO_KINDS, *, judge_scores: bool = True
) -> OutputComparison:
    """Compare a network's outputs with reference outputs for the same inputs.

    Outputs of one noise level are compared together, and outputs of few elements for all inputs together. The SQNR is
    that of the worst channel where a channel is worse than the whole output.

    Args:
        reference, outputs: outputs of the baseline and of the candidate for each input, in the same order.
        kinds: kinds of the outputs, from `read_output_kinds`.
        judge_scores: whether outputs of scores have an agreement of classes. Integers and booleans always have one.

    Raises:
        OutputMismatch: an output is missing or has another shape than the reference.
    """
    pooled: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for expected, actual in zip(reference, outputs, strict=True):
        _check_names(expected, actual)
        for name, tensor in expected.feeds.items():
            _check_shape(expected.label, name, tensor, actual.feeds[name])
            label = ALL_INPUTS if _is_small(reference, name) else expected.label.partition(", ")[0]
            pooled.setdefault((label, name), []).append((tensor, actual.feeds[name]))
    offsets = {name: _common_offset([probe.feeds[name] for probe in reference]) for name in reference[0].feeds}
    fidelity = {key: _compare_pool(key[1], pairs, kinds, offsets[key[1]]) for key, pairs in pooled.items()}
    if not judge_scores:
        scores = {name for name, tensor in reference[0].feeds.items() if tensor.dtype.kind == "f"}
        fidelity |= {key: replace(fidelity[key], agreement=None) for key in fidelity if key[1] in scores}
    names = list(reference[0].feeds)
    proven = {name for (_, name), value in fidelity.items() if value.has_signal}
    labelled = {f"{label}, {name}" if len(names) > 1 else label: value for (label, name), value in fidelity.items()}
    return OutputComparison(labelled, tuple(name for name in names if name not in proven | kinds.constant))


def check_rows(alone: Probe, together: Probe) -> None:
    """Check that the rows of a batch are answered as they are alone, by the same candidate.

    The difference must be small beside the differences between rows: rows that are alike, such as boxes of similar
    pictures, would hide that all rows got one answer.

    Args:
        alone: outputs of rows that were run in small batches, joined.
        together: outputs of the same rows, run as one batch.

    Raises:
        OutputMismatch: an output of a row differs by more than `_MAX_ROW_ERROR` of the differences between rows.
    """
    for name, tensor in alone.feeds.items():
        rows, batch = tensor.astype(np.float64), together.feeds[name].astype(np.float64)
        error = np.square(np.nan_to_num(batch - rows)).sum()
        between = np.square(rows - rows.mean(0, keepdims=True)).sum()
        if error > _MAX_ROW_ERROR * between and compare_tensors(rows, batch).sqnr < MIN_EQUAL_SQNR:
            share = f" by {error / between:.0%} of the differences between rows" if between else ""
            raise OutputMismatch(f"in a batch of {len(rows)}, {name} of a row differs from its answer alone{share}")


def compare_channels(reference: Tensor, other: Tensor) -> tuple[float, str]:
    """Return the lowest SQNR in dB of the channels that carry signal, and the place of this channel.

    The result is (MAX_SQNR, "") where the tensor has no axis of channels, or no channel carries signal. A channel of
    scores (all values in 0 to 1) carries signal from a peak of `_MIN_CHANNEL_PEAK`; another channel, where its standard
    deviation is at least `_MIN_CHANNEL_SPREAD` of the largest value of these channels and `_MIN_OWN_SPREAD` of its own.
    Above MAX_CHANNELS channels, those of scores are judged together. Nearly all scores may be 0, so
    that few errors outweigh them: the ratio of the peak to the largest error counts for scores if it is better.

    Args:
        reference, other: tensors of the same shape.

    >>> boxes, scores = np.full((2, 50), 300.0), np.linspace(0, 0.8, 50)
    >>> compare_channels(np.array([[*boxes, scores]]), np.array([[*boxes, 0 * scores]]))
    (0.0, 'channel 2 of axis 1')
    """
    worst, place = MAX_SQNR, ""
    mixed = mixed_axis(reference)
    axis = channel_axis(reference.shape) if mixed is None else mixed
    if axis is None or reference.dtype.kind != "f":
        return worst, place
    rows, other_rows = _channel_rows(reference, axis), _channel_rows(other, axis)
    has_signal, are_scores = _channels_with_signal(rows)
    judged = has_signal if len(rows) <= MAX_CHANNELS else has_signal & ~are_scores
    if len(rows) > MAX_CHANNELS and (has_signal & are_scores).any():
        scores = compare_tensors(rows[are_scores], other_rows[are_scores])
        worst = max(scores.sqnr, rescale_sqnr(scores, rows[are_scores]))
        place = f"the scores along axis {axis}"
    for channel in np.flatnonzero(judged):
        fidelity = compare_tensors(rows[channel], other_rows[channel])
        sqnr = fidelity.sqnr
        if are_scores[channel]:
            sqnr = max(sqnr, rescale_sqnr(fidelity, rows[channel]))
        if sqnr < worst:
            worst, place = sqnr, f"channel {channel} of axis {axis}"
    return worst, place


def channel_axis(shape: Sequence[int]) -> int | None:
    """Return the axis of a tensor that is taken for channels, such as coordinates and scores; None where there is none.

    The axis has 2 to MAX_CHANNELS elements. In matrices it is the last, if there are enough rows. With three axes it is
    the shorter one of the last two. With four axes it is the second, or the last where this one has at most 4 elements;
    with more axes it is the last.

    >>> channel_axis((1, 84, 2100)), channel_axis((1, 25200, 85)), channel_axis((1, 4, 64, 64)), channel_axis((1, 1000))
    (1, 2, 1, None)
    """
    rank = len(shape)
    if rank < 2 or np.prod(shape) == 0:
        return None
    if rank == 2:
        axis = 1
    elif rank == 3:
        axis = 1 if shape[1] < shape[2] else 2
    else:
        axis = 1 if rank == 4 and shape[3] > 4 else rank - 1
    elements = np.prod(shape) // shape[axis]
    return axis if 2 <= shape[axis] <= MAX_CHANNELS and elements >= _MIN_ELEMENTS else None


def mixed_axis(reference: Tensor, min_elements: int = _MIN_ELEMENTS) -> int | None:
    """Return the axis along which some places hold scores (all values in 0 to 1) and others larger values; or None.

    The shape alone does not tell where boxes and scores lie: detectors have [1, 4 + classes, anchors] and
    [1, height, width, anchors]. The first axis counts rows and is left out.

    >>> boxes, scores = np.full((1, 50, 4), 300.0), np.linspace(0.1, 0.8, 50).reshape(1, 50, 1)
    >>> mixed_axis(np.concatenate([boxes, scores], axis=-1))
    2
    """
    if reference.dtype.kind != "f" or not reference.size:
        return None
    for axis in range(reference.ndim - 1, 0, -1):
        length = reference.shape[axis]
        if 2 <= length <= MAX_MIXED and reference.size // length >= min_elements:
            others = tuple(other for other in range(reference.ndim) if other != axis)
            highest = reference.max(others)
            are_scores = (reference.min(others) >= 0) & (highest <= 1)
            if are_scores.any() and not are_scores.all() and highest[are_scores].max() >= _MIN_CHANNEL_PEAK:
                return axis
    return None


def _channel_rows(tensor: Tensor, axis: int) -> NDArray[np.float64]:
    """Return the values at each place of an axis, [length of the axis, others]."""
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1).astype(np.float64)


def class_agreement(reference: Tensor, other: Tensor, *, are_logits: bool = False) -> float | None:
    """Return the share of rows for which both tensors choose the same class, the largest element of the last axis.

    Of all rows, and of the rows without the most common class, the smaller share counts: most rows of a text recogniser
    are blank, and most places of a picture are background, but the others are what users read.

    A row in which the reference prefers its class by a probability of at most `_TIE_MARGIN` is a tie, and counts as
    equal. Integers and booleans agree where they are equal; uint8 tensors with more than `_MAX_CLASSES` values are
    pictures. The result is None where the reference holds neither
    integers nor scores. Scores are logits (`are_logits`), or probabilities as `are_probabilities` finds.

    >>> class_agreement(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.2, 0.8], [0.9, 0.1]]))
    1.0
    >>> class_agreement(np.array([[0.1, 0.9]] * 9 + [[0.8, 0.2]]), np.array([[0.1, 0.9]] * 10))
    0.0
    """
    if reference.dtype.kind in "iub":
        are_classes = reference.dtype != np.uint8 or len(np.unique(reference)) <= _MAX_CLASSES
        return float(np.mean(reference == other)) if are_classes and reference.size else None
    if reference.ndim < 2 or reference.shape[-1] < 2 or not reference.size:
        return None
    if not are_logits and not are_probabilities(reference):
        return None
    scores, others = (tensor.reshape(-1, reference.shape[-1]).astype(np.float64) for tensor in (reference, other))
    is_known = np.isfinite(scores.max(-1))
    if not is_known.any():
        return None
    scores, chosen = scores[is_known], np.nan_to_num(others[is_known], nan=-np.inf).argmax(-1)
    probabilities = _to_probabilities(scores)
    lost = probabilities.max(-1) - np.take_along_axis(probabilities, chosen[:, None], -1)[:, 0]
    is_equal, classes = lost <= _TIE_MARGIN, scores.argmax(-1)
    is_rare = classes != np.bincount(classes).argmax()
    return min(float(rows.mean()) for rows in (is_equal, is_equal[is_rare]) if rows.size)


def _to_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of classes, [rows, classes], of probabilities, their logarithms, or other logits."""
    if scores.min() >= 0 and are_probabilities(scores):
        return scores
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return probabilities


def are_probabilities(reference: Tensor) -> bool:
    """Return whether the rows of a tensor, along its last axis, are probabilities of classes, or logarithms of them.

    Probabilities are at least 0 and add up to 1, within 1 %.
    """
    wide = reference.astype(np.float64)
    if reference.dtype.kind != "f" or not np.isfinite(wide).all():
        return False
    if wide.min() >= -1e-6:
        return bool(np.allclose(wide.sum(-1), 1, atol=0.01))
    return bool(wide.max() <= 1e-6 and np.allclose(np.exp(wide).sum(-1), 1, atol=0.01))


def _check_names(expected: Probe, actual: Probe) -> None:
    if expected.feeds.keys() != actual.feeds.keys():
        raise OutputMismatch(
            f"the network's outputs are {', '.join(actual.feeds)}; "
            f"allowed: {', '.join(expected.feeds)}, the outputs of the baseline"
        )


def _check_shape(label: str, name: str, expected: Tensor, actual: Tensor) -> None:
    if expected.shape != actual.shape:
        raise OutputMismatch(
            f"output {name} has shape {list(actual.shape)}, the baseline's has {list(expected.shape)}"
            f" for {label}; both need the same shape"
        )


def _is_small(reference: Sequence[Probe], name: str) -> bool:
    return len(reference) > 1 and all(probe.feeds[name].size < _MIN_ELEMENTS for probe in reference)


def compare_around_mean(reference: Tensor, other: Tensor) -> tuple[float, str]:
    """Return the SQNR in dB of the differences from the mean of each row of a reference, and the place "each row".

    Logits may have a common offset that is larger than their differences, which alone decide about the class. The
    result is (MAX_SQNR, "") where the last axis has no differences.

    >>> compare_around_mean(np.array([[100.0, 101.0]]), np.array([[100.5, 100.5]]))
    (0.0, 'the differences in each row')
    """
    if not reference.ndim or reference.shape[-1] < 2:
        return MAX_SQNR, ""
    wide = reference.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    if not (wide - mean).any():
        return MAX_SQNR, ""
    return compare_tensors(wide - mean, other.astype(np.float64) - mean).sqnr, "the differences in each row"


def _common_offset(tensors: Sequence[Tensor]) -> float:
    """Return the mean of an output over all inputs where it dwarfs all differences, otherwise 0.

    288 kelvin with a spread of 0.2 would otherwise be 57 dB for an answer that has nothing to do with the input.
    """
    values = np.concatenate([tensor.ravel() for tensor in tensors])
    if values.dtype.kind != "f" or not values.size or not np.isfinite(values).all():
        return 0.0
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return mean if abs(mean) > _MIN_OFFSET * deviation else 0.0


def _compare_pool(
    name: str, pairs: Sequence[tuple[Tensor, Tensor]], kinds: OutputKinds, offset: float = 0.0
) -> Fidelity:
    """Compare an output for several inputs together.

    Args:
        name: name of the output.
        pairs: the reference's and the candidate's output for each input.
        kinds: kinds of all outputs.
        offset: value of `_common_offset`, which carries no signal.
    """
    in_unit_range, is_linear = name in kinds.unit, name in kinds.linear
    if offset:
        pairs = [(reference - np.float64(offset), other - np.float64(offset)) for reference, other in pairs]
    expected, actual = (np.concatenate([tensor.ravel() for tensor in side]) for side in zip(*pairs, strict=True))
    whole = compare_tensors(expected, actual)
    if whole.nonfinite:
        return whole
    are_logits = is_linear and _looks_like_logits(name, pairs[0][0].shape)
    small = _split_small(pairs)
    compared = (class_agreement(*pair, are_logits=are_logits) for pair in (*pairs, *small.values()))
    agreements = [agreement for agreement in compared if agreement is not None]
    whole = replace(whole, agreement=min(agreements, default=None))
    if not _has_signal(expected, in_unit_range, _MIN_DEVIATION * abs(offset)):
        return replace(whole, sqnr=rescale_sqnr(whole, expected, 1.0 if in_unit_range else None), has_signal=False)
    parts = [compare_channels(*pair) for pair in pairs]
    parts += [compare_around_mean(*pair) for pair in pairs] if is_linear else []
    parts += [(compare_tensors(*pair).sqnr, part) for part, pair in small.items()]
    worst, place = min(parts)
    is_named = worst <= whole.sqnr + _TIE_DECIBELS  # a part that is as bad as the whole says more
    return replace(whole, sqnr=min(worst, whole.sqnr), place=place) if is_named else whole


def _split_small(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the scores of a small output for all inputs, and each other number of it, by a text, where it has both.

    An age beside two probabilities has too few elements of each kind in one input.
    """
    shapes = {reference.shape for reference, _ in pairs}
    (*_, shape) = shapes
    if len(shapes) > 1 or not shape or np.prod(shape) >= _MIN_ELEMENTS or shape[-1] < 2:
        return {}
    reference, other = (
        np.concatenate([tensor.reshape(-1, shape[-1]) for tensor in side]) for side in zip(*pairs, strict=True)
    )
    if len(reference) < _MIN_STACKED or mixed_axis(reference, _MIN_STACKED) is None:
        return {}
    are_scores = (reference.min(0) >= 0) & (reference.max(0) <= 1)
    parts = {"the scores": np.flatnonzero(are_scores)}
    parts |= {f"number {place} of each row": np.array([place]) for place in np.flatnonzero(~are_scores)}
    return {
        part: (reference[:, places], other[:, places]) for part, places in parts.items() if reference[:, places].std()
    }


def _looks_like_logits(name: str, shape: Sequence[int]) -> bool:
    """Return whether the output of a linear layer holds logits of classes, by its name or by its last axis."""
    if _CLASSES.search(name) or not shape:
        return bool(shape)
    is_class_count = shape[-1] >= _MIN_CLASSES and shape[-1] % _WIDTH_MULTIPLE != 0
    return is_class_count and not _FEATURES.search(name)


def _has_signal(reference: Tensor, in_unit_range: bool, least_spread: float = 0.0) -> bool:
    """Return whether a reference output, flattened, carries signal, so that an error relative to it means something.

    It carries none where it is empty or constant, or where it stays far below its known range.
    """
    wide = reference[np.isfinite(reference)].astype(np.float64)
    if not wide.size or wide.max() - wide.min() <= least_spread:
        return False
    return not in_unit_range or bool(np.abs(wide).max() >= _MIN_PEAK)


def _channels_with_signal(rows: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which channels carry signal and which hold scores, bool [channels] each.

    `rows` are the values of each channel, float64 [channels, N].
    """
    scores: NDArray[np.bool_] = np.all((rows >= 0) & (rows <= 1), axis=1)
    peaks = np.abs(rows).max(1)
    largest = peaks[~scores].max(initial=0.0)
    least = np.maximum(_MIN_CHANNEL_SPREAD * largest, _MIN_OWN_SPREAD * peaks)
    excited: NDArray[np.bool_] = np.where(scores, peaks >= _MIN_CHANNEL_PEAK, rows.std(1) > least)
    return excited, scores
