"""A graph whose convolutions and matrix products compute in small integers.

For onnxruntime this is a pass of our own over the standard's operators, not `onnxruntime.quantization`, which loads a
model whole and writes copies of it. Here a constant is read, rounded and written, one after the other: 2.2 GB of
weights take 0.8 GB of memory. On the Shapes U-Net it gives 24 dB, and the library 22 with the same bits.
For OpenVINO it is NNCF.

Weights are rounded to 7 bits where they are signed and meet unsigned inputs (`reduce_range`, `overflow_fix`): without
VNNI instructions, x86 adds two products of 8 bits in 16, where they saturate (onnxruntime.ai, "Quantize ONNX models";
on the Shapes U-Net static quantisation gives 12 dB with 8 bits and 24 dB with 7). A graph made on one processor is so
right on the others.
"""

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends import openvino, ort
from stillhouse.backends.graph import load_graph
from stillhouse.backends.onnx_edit import (
    COMPUTE_OPS,
    Constant,
    Model,
    Node,
    check_node_names,
    inner_graphs,
    load_with_constants,
    node_name,
    save_with_constants,
    set_repeated,
)
from stillhouse.backends.qdq import QUANT_TYPES, WEIGHT_TYPES, QdqRewriter, QuantType, Ranges, WeightType, output_axis
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX, read_signature
from stillhouse.check import check_choice
from stillhouse.errors import BackendFailed, InvalidRequest

Feeds = Sequence[Mapping[str, NDArray[Any]]]
"""What was fed to the network, call by call."""

_OPSET = 13  # the first with a scale for each channel
_WITH_FP8, _IR_WITH_FP8 = 19, 9
_ACTIVATIONS = ("Relu", "Clip")
_FLOAT = 1  # TensorProto.FLOAT


def quantize_static(
    graph: Path, out: Path, feeds: Feeds, *, keep: Collection[str] = (), quant_type: QuantType = "uint8"
) -> None:
    """Write `out`: QuantizeLinear and DequantizeLinear around every Conv, MatMul and Gemm that has weights.

    Inputs are unsigned with one range for a tensor, the widest that the feeds show (of the Shapes U-Net, nine tenths
    of it lose 1 dB and three quarters 6); weights are signed with a scale for each output channel (Jacob et al. 2018,
    arXiv:1712.05877). Products of two activations stay in float32.
    Runtimes fuse what is written here into integer kernels. A row's result does not depend on the other rows.

    Args:
        graph: an ONNX file with float32 weights, or halves that are cast to float32.
        feeds: real ones, from everywhere that the network will be asked; a few dozen.
        keep: names of nodes that stay in float32.
        numbers: of int8, inputs are signed, with zero in the middle of their range, and weights keep all of their 8
            bits, as TensorRT takes them: it knows no zero points. fp8 is the same with floats (e4m3), which GPUs
            multiply from compute capability 8.9 on; the graph is then of opset 19.

    Raises:
        InvalidRequest: no feeds, an unknown name in `keep`, or nothing to quantise.
        PipelineError, BackendFailed: the graph cannot be read or run.

    >>> static(Path("unet/model.onnx"), Path("int8/model.onnx"), feeds, keep=["/conv_in/Conv"])  # doctest: +SKIP
    """
    _check_feeds(feeds)
    check_choice("kind of numbers", quant_type, QUANT_TYPES)
    model, constants = load_with_constants(graph)
    heavy = _quantizable_nodes(graph, model, constants, keep)
    if quant_type == "fp8":
        _raise_opset(graph, model)
    places = _rounded_outputs(model, heavy)
    ranges = _ranges(graph, sorted({node.input[0] for node in heavy} | places), feeds)
    rewriting, quantised = QdqRewriter(constants, quant_type), {node_name(node) for node in heavy}
    for node in list(model.graph.node):
        if node_name(node) in quantised:
            rewriting.add_static(node, ranges)
        else:
            rewriting.nodes.append(node)
        for name in places.intersection(node.output):
            rewriting.round_output(node, name, ranges)
    set_repeated(model.graph.node, rewriting.nodes)
    save_with_constants(model, constants, out)


def quantize_dynamic(
    graph: Path,
    out: Path,
    *,
    weights: WeightType = "uint8",
    keep: Collection[str] = (),
    operators: Collection[str] = ("MatMul", "Gemm"),
) -> None:
    """Write `out`: integer products whose inputs are rounded by the range that each tensor has while it runs.

    It needs no feeds, but a tensor's range is that of the whole batch, so that a row depends on its neighbours.

    Args:
        weights: signed ones have 7 bits here, unsigned ones 8. Which are quicker depends on the processor.
        keep: names of nodes that stay in float32.
        operators: which to take. ConvInteger is slower than a float32 convolution in onnxruntime (the whole Shapes
            U-Net at 0.4 times the speed with signed weights, 0.8 with unsigned ones), but its weights are smaller.

    Raises:
        InvalidRequest, PipelineError, BackendFailed: as `static`.
    """
    for name in operators:
        check_choice("operator", name, COMPUTE_OPS)
    check_choice("kind of weights", weights, WEIGHT_TYPES)
    model, constants = load_with_constants(graph)
    heavy = _quantizable_nodes(graph, model, constants, keep, operators)
    rewriting, quantised = QdqRewriter(constants), {node_name(node) for node in heavy}
    for node in list(model.graph.node):
        if node_name(node) in quantised:
            rewriting.add_dynamic(node, weights)
        else:
            rewriting.nodes.append(node)
    set_repeated(model.graph.node, rewriting.nodes)
    save_with_constants(model, constants, out)


def quantize_openvino(graph: Path, out: Path, feeds: Feeds, *, keep: Collection[str] = ()) -> None:
    """Write `out`, an OpenVINO graph in static int8 with SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) by NNCF.

    Half of each channel's range moves from the inputs to the weights, of convolutions too: alpha 0.5, the paper's own.
    Inputs have the widest range that the feeds show. On the Shapes U-Net that gives 30 dB, 25 at the worst noise
    level; with NNCF's alphas, 0.95 and no convolutions, and its ranges, which are means over the feeds, 24 and 8.

    Args:
        out: a name that ends in .xml; the weights go to the .bin beside it.
        feeds, keep: as of `static`.

    Raises:
        RuntimeMissing: nncf or openvino is not installed.
        InvalidRequest, PipelineError, BackendFailed: as `static`.
    """
    _check_feeds(feeds)
    with _nncf(graph, out, keep) as (nncf, model, ignored):
        advanced = require("nncf.quantization.advanced_parameters")
        ranges = require("nncf.quantization.range_estimator").RangeEstimatorParametersSet
        quantised = nncf.quantize(
            model,
            nncf.Dataset([dict(each) for each in feeds]),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges.MINMAX,
                disable_bias_correction=True,  # it runs every layer again, and moves the Shapes U-Net by 0.1 dB
                overflow_fix=advanced.OverflowFix.ENABLE,
                smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=0.5, matmul=0.5),
            ),
        )
    openvino.save_openvino_model(quantised, out)


def compress_openvino_weights(graph: Path, out: Path, *, bits: Literal[8, 4] = 8, keep: Collection[str] = ()) -> None:
    """Write `out`, an OpenVINO graph whose weights are stored in integers and expanded where they are used, by NNCF.

    It saves memory, and time where a network waits for its weights; arithmetic stays as it was. With 4 bits,
    convolutions and the last layer keep 8, and groups of 64 weights, or as many as divide a row, share a scale.

    Raises:
        RuntimeMissing, InvalidRequest, PipelineError, BackendFailed: as `openvino_static`.
    """
    if bits not in (8, 4):
        raise InvalidRequest(f"weights of {bits} bits", allowed="8, 4")
    with _nncf(graph, out, keep) as (nncf, model, ignored):
        advanced = require("nncf.quantization.advanced_parameters")
        options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
        if bits == 4:
            adjust = advanced.AdvancedCompressionParameters(
                group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST
            )
            options = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64, "advanced_parameters": adjust}
        compressed = nncf.compress_weights(model, ignored_scope=ignored, **options)
    openvino.save_openvino_model(compressed, out)


@contextmanager
def _nncf(graph: Path, out: Path, keep: Collection[str]) -> Iterator[tuple[Any, Any, Any]]:
    """NNCF, the graph as it takes it, and what it must not touch. It says nothing, draws no bars, fails as we do."""
    if out.suffix != OPENVINO_SUFFIX:
        raise InvalidRequest(
            f"{out} as the name of an OpenVINO graph", allowed=f"a name that ends in {OPENVINO_SUFFIX}"
        )
    signature = read_signature(graph)
    skeleton = load_graph(graph)
    kept = check_node_names(keep, skeleton)
    # OpenVINO calls a node whose result is the graph's by the result's name.
    named = {
        name for node in skeleton.graph.node if node_name(node) in kept for name in (node_name(node), *node.output)
    }
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        os.environ.setdefault("NNCF_CI", "1")  # its own switch; without it, it reports its use to its makers
        nncf = require("nncf")
        nncf.set_log_level(logging.CRITICAL)
        model = openvino.read_openvino_model(graph, signature)
        names = [f"{name}{suffix}" for name in sorted(named) for suffix in ("", openvino.WITHOUT_BIAS_SUFFIX)]
        with translate_errors("nncf", graph, "quantise"):
            yield nncf, model, nncf.IgnoredScope(names=names, validate=False)


def _quantizable_nodes(
    graph: Path,
    model: Model,
    constants: Mapping[str, Constant],
    keep: Collection[str],
    operators: Collection[str] = COMPUTE_OPS,
) -> list[Node]:
    """The nodes to quantise."""
    kept = check_node_names(keep, model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise InvalidRequest(f"{graph} is of opset {opset}", allowed=f"{_OPSET} and later", fix="export it anew")
    nodes = (node for node in model.graph.node if node.op_type in operators and node_name(node) not in kept)
    heavy = [node for node in nodes if _has_weights(node, constants)]
    if not heavy:
        allowed = f"{' or '.join(operators)} with float32 weights that is not kept"
        raise InvalidRequest(f"{graph} has nothing to quantise", allowed=allowed)
    return heavy


def _raise_opset(graph: Path, model: Model) -> None:
    """To the first with floats of eight bits. Since 13, where this begins, other things are meant there by operators
    that took axes as an attribute, by Split without lengths, and by RoiAlign that names no origin of its pixels."""
    (opset,) = (entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset.version >= _WITH_FP8:
        return
    for node in _iterate_nodes(model.graph):
        names = {attribute.name for attribute in node.attribute}
        means_another = (
            (node.op_type.startswith("Reduce") and "axes" in names)
            or (node.op_type == "Split" and len(node.input) < 2)
            or (node.op_type == "RoiAlign" and "coordinate_transformation_mode" not in names)
        )
        if means_another:
            given = f"{node.op_type} {node_name(node)} of opset {opset.version} in {graph}"
            raise InvalidRequest(given, allowed=f"opset {_WITH_FP8}", fix="export it anew")
    opset.version = _WITH_FP8
    model.ir_version = max(model.ir_version, _IR_WITH_FP8)


def _iterate_nodes(graph: Any) -> Iterator[Node]:
    """Its nodes, and those of the graphs inside them."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _iterate_nodes(inner)


def _has_weights(node: Node, constants: Mapping[str, Constant]) -> bool:
    """Whether it is a node whose weights, and bias if it has one, are constants of the usual shape."""
    if node.domain not in ("", "ai.onnx") or node.input[0] in constants:
        return False
    weights, *bias = (constants.get(name) for name in node.input[1:])
    if weights is None or weights.dtype != np.float32 or None in bias:
        return False
    plain = all(
        attribute.i == 0 if attribute.name == "transA" else attribute.f == 1
        for attribute in node.attribute
        if attribute.name in ("transA", "alpha", "beta")
    )
    flat = node.op_type == "Conv" or len(weights.shape) == 2
    return flat and plain and all(one.shape == (weights.shape[output_axis(node)],) for one in bias if one)


def _rounded_outputs(model: Model, heavy: Sequence[Node]) -> set[str]:
    """The tensors behind convolutions that are rounded too, as a fused convolution gives integers.

    Where nothing but an activation takes a convolution's result, that is part of it, and what it gives is rounded.
    """
    results = {value.name for value in model.graph.output}
    takers: dict[str, list[Node]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    places = set()
    for node in heavy:
        if node.op_type == "Conv":
            (name,) = node.output
            follows = takers.get(name, [])
            activated = len(follows) == 1 and follows[0].op_type in _ACTIVATIONS and name not in results
            places.add(follows[0].output[0] if activated else name)
    return places


def _check_feeds(feeds: Feeds) -> None:
    if not feeds:
        raise InvalidRequest("no feeds to calibrate with", allowed="inputs that were recorded while the network ran")


def _ranges(graph: Path, names: Sequence[str], feeds: Feeds) -> Ranges:
    """The least and the greatest value that each of these tensors has with these feeds."""
    model: Model = load_graph(graph)
    helper = require("onnx.helper")
    del model.graph.output[:]
    for place, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            model.graph.node.append(helper.make_node(operator, [name], [f"{operator}.{place}"], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(f"{operator}.{place}", _FLOAT, []))
    evaluate = ort.make_evaluator(model.SerializeToString(), graph.parent)
    found = np.array([list(evaluate(dict(each)).values()) for each in feeds])
    if not np.isfinite(found).all():
        raise BackendFailed(f"{graph} gives values that are not finite", fix="look at what it is fed")
    least, greatest = found[:, 0::2].min(axis=0), found[:, 1::2].max(axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, least, greatest, strict=True)}
