"""Quantisation of a graph's convolutions and matrix products.

For onnxruntime and TensorRT this module rewrites the graph with standard operators. `onnxruntime.quantization` is not
used: it loads the whole model and writes copies of it. Here one constant at a time is read, rounded and written, so
that 2.2 GB of weights need 0.8 GB of memory. On the denoiser of the embedded model "shapes", the signal to noise ratio
is 24 dB; with the library and the same number of bits, the ratio is 22 dB. For OpenVINO, NNCF is used.

Where inputs are unsigned, signed weights are rounded to 7 bits, as by onnxruntime's option `reduce_range`. Without VNNI
instructions, x86 adds two 8-bit products in 16 bits, and the sum saturates (onnxruntime.ai, "Quantize ONNX models"). On
the Shapes denoiser, static quantisation gives 12 dB with 8 bits and 24 dB with 7. With 7 bits, a graph that was made on
one processor is right on all others. OpenVINO's graphs have 8 where they are made on a processor with VNNI, and say so.
"""

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends import openvino, ort
from stillhouse.backends.graph import load_graph
from stillhouse.backends.inner_graphs import iterate_graphs, iterate_nodes
from stillhouse.backends.onnx_edit import (
    COMPUTE_OPS,
    Constant,
    Model,
    Node,
    check_node_names,
    inner_constants,
    load_with_constants,
    node_name,
    save_with_constants,
    set_repeated,
    store_inner_constants,
)
from stillhouse.backends.openvino_operations import count_operations
from stillhouse.backends.opset import set_standard_opset, standard_opset, with_opset
from stillhouse.backends.qdq import QUANT_TYPES, WEIGHT_TYPES, QdqRewriter, QuantType, Ranges, WeightType, output_axis
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX, is_large, read_signature
from stillhouse.check import check_choice
from stillhouse.errors import BackendFailed, InvalidRequest

Feeds = Sequence[Mapping[str, NDArray[Any]]]
"""Recorded inputs of the network, one mapping for each call."""

_OPSET = 13  # opset 13 is the first in which DequantizeLinear takes a scale for each channel
_WITH_FP8, _IR_WITH_FP8 = 19, 9
_ACTIVATIONS = ("Relu", "Clip")
_LIGHT_SHARE, _SHORTCUT = 0.0005, "conv_shortcut"
_FLOAT = 1  # TensorProto.FLOAT as a number, so that onnx is imported only when a graph is quantised


def quantize_static(
    graph: Path, out: Path, feeds: Feeds, *, keep: Collection[str] = (), quant_type: QuantType = "uint8"
) -> None:
    """Write a graph with QuantizeLinear and DequantizeLinear around every Conv, MatMul and Gemm with weights.

    Inputs are unsigned with one range for each tensor, the widest that occurs in the feeds. (On the Shapes denoiser,
    nine tenths of the widest range lower the signal to noise ratio by 1 dB, three quarters by 6 dB.) Weights are signed
    with a scale for each output channel (Jacob et al. 2018, arXiv:1712.05877). Products of two activations stay in
    float32. Runtimes fuse these operators into integer kernels. The result of a row does not depend on the other rows.

    Args:
        graph: an ONNX file with float32 weights, or half precision weights that are cast to float32.
        out: the file to write.
        feeds: representative inputs, a few dozen.
        keep: names of nodes that stay in float32.
        quant_type: "uint8": as described above. "int8", for TensorRT: inputs have no zero points, which TensorRT lacks,
            and weights have 8 bits. "fp8": as "int8" with e4m3 floats, which GPUs multiply from compute capability 8.9
            on; the graph then has opset 19.

    Raises:
        InvalidRequest: `feeds` is empty, `keep` has an unknown name, no node can be quantised, or the graph's opset is
            below 13 and cannot be converted, see `opset.with_opset`.
        PipelineError, BackendFailed: the graph cannot be read or run.

    >>> keep = ["/conv_in/Conv"]
    >>> quantize_static(Path("model.onnx"), Path("int8/model.onnx"), feeds, keep=keep)  # doctest: +SKIP
    """
    _check_feeds(feeds)
    check_choice("kind of numbers", quant_type, QUANT_TYPES)
    with with_opset(graph, _OPSET, feeds, out.parent) as source:
        _quantize_static(source, out, feeds, keep, quant_type)


def _quantize_static(graph: Path, out: Path, feeds: Feeds, keep: Collection[str], quant_type: QuantType) -> None:
    """Do as `quantize_static` with a graph of opset 13 or later."""
    model, constants = load_with_constants(graph)
    heavy = _quantizable_nodes(graph, model, constants, keep)
    if quant_type == "fp8":
        _raise_opset(graph, model)
    rounded = _rounded_outputs(model, heavy)
    ranges = _ranges(graph, sorted({node.input[0] for node in heavy} | rounded), feeds)
    rewriter, quantised = QdqRewriter(constants, quant_type), {node_name(node) for node in heavy}
    for node in list(model.graph.node):
        if node_name(node) in quantised:
            rewriter.add_static(node, ranges)
        else:
            rewriter.nodes.append(node)
        for name in rounded.intersection(node.output):
            rewriter.round_output(node, name, ranges)
    set_repeated(model.graph.node, rewriter.nodes)
    save_with_constants(model, constants, out)


def quantize_dynamic(
    graph: Path,
    out: Path,
    *,
    weights: WeightType = "uint8",
    keep: Collection[str] = (),
    operators: Collection[str] = ("MatMul", "Gemm"),
    feeds: Feeds = (),
) -> None:
    """Write a graph with integer products whose input ranges are measured at run time.

    No recorded inputs are needed, and nodes in the branches of If and the bodies of Loop are quantised, too. The range
    of a tensor is measured over the whole batch, so the result of a row depends on the other rows.

    Args:
        graph: an ONNX file with float32 weights, or half precision weights that are cast to float32.
        out: the file to write.
        weights: type of the weights. int8 weights have 7 bits here, uint8 weights 8. The processor decides which type
            is faster.
        keep: names of nodes that stay in float32.
        operators: operators to quantise. Convolutions are left out by default: in onnxruntime, ConvInteger is slower
            than a float32 convolution (the Shapes denoiser runs at 0.4 times the speed with int8 weights and at 0.8
            times with uint8 weights), but its weights are smaller.
        feeds: inputs of the network, needed only where the graph's opset is below 13: with the first of them, the
            converted graph is checked.

    Raises:
        InvalidRequest: an operator is not supported, `keep` has an unknown name, no node can be quantised, or the
            graph's opset is below 13 and cannot be converted, see `opset.with_opset`.
        PipelineError, BackendFailed: the graph cannot be read or written.
    """
    for name in operators:
        check_choice("operator", name, COMPUTE_OPS)
    check_choice("kind of weights", weights, WEIGHT_TYPES)
    with with_opset(graph, _OPSET, feeds, out.parent) as source:
        _quantize_dynamic(source, out, weights, keep, operators)


def _quantize_dynamic(
    graph: Path, out: Path, weights: WeightType, keep: Collection[str], operators: Collection[str]
) -> None:
    """Do as `quantize_dynamic` with a graph of opset 13 or later."""
    model, constants = load_with_constants(graph)
    excluded = check_node_names(keep, model)
    count = 0
    # Inner graphs come first, since the rewriter of the outer graph copies the nodes that hold them.
    for depth, part in reversed(list(enumerate(iterate_graphs(model.graph)))):
        known = {**constants, **inner_constants(part)} if depth else constants
        scope = f".{depth}" if depth else ""
        rewriter, quantised = QdqRewriter(known, scope=scope), _heavy_nodes(part, known, excluded, operators)
        count += len(quantised)
        for node in list(part.node):
            if node_name(node) in quantised:
                rewriter.add_dynamic(node, weights)
            else:
                rewriter.nodes.append(node)
        set_repeated(part.node, rewriter.nodes)
        if depth:
            store_inner_constants(part, {name: known[name] for name in known.keys() - constants.keys()})
    if not count:
        raise _nothing_to_quantise(graph, operators)
    save_with_constants(model, constants, out)


def quantize_openvino(graph: Path, out: Path, feeds: Feeds, *, keep: Collection[str] = ()) -> None:
    """Write an OpenVINO graph in static int8 with SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) by NNCF.

    SmoothQuant moves half of each channel's range from the inputs to the weights (alpha 0.5, as in the paper), here
    also in convolutions. The range of an input is the widest that occurs in the feeds. On the Shapes denoiser the
    signal to noise ratio is 30 dB, and 25 dB at the worst noise level. With NNCF's defaults (alpha 0.95, no
    convolutions, ranges that are means over the feeds), the ratios are 24 dB and 8 dB.

    Weights have 8 bits where the processor has VNNI, and 7 elsewhere, see above; a graph with 8 is not opened there. At
    Stable Diffusion 1.5's size (random weights) 8 bits gain 0.2 to 1 dB.

    Layers that cost little time and lose much stay as they are, see `_costly_to_round`: at Stable Diffusion 1.5's size
    (random weights) this gains 4 to 5 dB with 3 % of the operations.

    The ranges of a large graph are measured with less memory, see `_quantise_large`.

    Args:
        graph: an ONNX file.
        out: file to write, whose name ends in .xml; the weights go to the .bin file beside it.
        feeds: representative inputs, a few dozen.
        keep: names of nodes that stay in float32.

    Raises:
        RuntimeMissing: nncf or openvino is not installed.
        InvalidRequest: `feeds` is empty, `keep` has an unknown name, `out` does not end in .xml, or no node can be
            quantised.
        PipelineError, BackendFailed: the graph cannot be read or quantised.
    """
    _check_feeds(feeds)
    has_vnni = openvino.has_vnni()
    with _nncf(graph, out, keep) as (nncf, model, ignored):
        advanced = require("nncf.quantization.advanced_parameters")
        ignored = nncf.IgnoredScope(names=[*ignored.names, *_costly_to_round(model, feeds[0])], validate=False)
        ranges = require("nncf.quantization.range_estimator").RangeEstimatorParametersSet
        parameters = advanced.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges.MINMAX,
            disable_bias_correction=True,  # bias correction is slow, and gains only 0.1 dB (on the Shapes denoiser)
            overflow_fix=advanced.OverflowFix.DISABLE if has_vnni else advanced.OverflowFix.ENABLE,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=0.5, matmul=0.5),
        )
        quantise = partial(
            nncf.quantize,
            calibration_dataset=nncf.Dataset([dict(feed) for feed in feeds]),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=parameters,
        )
        try:
            if is_large(graph, read_signature(graph)):
                quantised = _quantise_large(model, feeds, quantise)
            else:
                quantised = quantise(model)
        except nncf.ValidationError as error:
            if "dataset must not be empty" not in str(error):
                raise
            raise BackendFailed(
                f"a branch of an If in {graph} is taken by none of the recorded inputs, so its ranges are unknown",
                fix="record inputs that take every branch, or quantise the weights only",
            ) from error
    if not keep and not openvino.has_quantization_ranges(quantised):
        raise InvalidRequest(
            f"{graph} has nothing to quantise",
            allowed="a convolution or matrix product with weights, outside of loops",
        )
    if has_vnni:
        openvino.demand_vnni(quantised)
    openvino.save_openvino_model(quantised, out)


def _quantise_large(model: Any, feeds: Feeds, quantise: Callable[[Any], Any]) -> Any:
    """Return what `quantise` makes of a large model, with less memory and time.

    At Stable Diffusion 1.5's size NNCF takes 10.5 in place of 12.9 GiB, and 136 in place of 178 s.

    Ranges are measured in the precision in which OpenVINO computes by default, which is bf16 where the processor has
    it, and in static shapes where all feeds have the same, so that layers share memory. Afterwards the model's axes are
    as before. NNCF has no setting for either.
    """
    engine = require("nncf.openvino.engine")
    native = engine.OVNativeEngine
    axes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
    shapes = [{name: list(array.shape) for name, array in feed.items()} for feed in feeds]
    if all(other == shapes[0] for other in shapes):
        model.reshape(shapes[0])
    engine.OVNativeEngine = partial(native, use_fp32_precision=False)
    try:
        quantised = quantise(model)
    finally:
        engine.OVNativeEngine = native
    quantised.reshape(axes)
    return quantised


def _costly_to_round(model: Any, feeds: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return OpenVINO's names of the layers that cost little time and whose rounding loses much.

    These are layers with less than `_LIGHT_SHARE` of all operations, such as the first and the last convolution and
    those of the time embedding, on which all others depend; and the 1x1 convolutions beside residual blocks, as
    diffusers names them: they read two parts of different scale, joined, without a normalisation before.
    """
    sized = model.clone()
    sized.reshape({name: list(array.shape) for name, array in feeds.items()})
    layers = list(count_operations(sized))
    least = _LIGHT_SHARE * sum(layer.operations for layer in layers)
    return [
        layer.name
        for layer in layers
        if layer.kind != "product" and (layer.operations < least or _SHORTCUT in layer.name)
    ]


def compress_openvino_weights(graph: Path, out: Path, *, bits: Literal[8, 4] = 8, keep: Collection[str] = ()) -> None:
    """Write an OpenVINO graph with weights that NNCF stores as integers and that inference expands before use.

    Integer weights save memory, and time where memory bandwidth is the limit. Arithmetic stays in floating point. With
    4 bits, convolutions and the last layer have 8 bits, and groups of 64 weights share a scale; where 64 does not
    divide a row, the group is smaller.

    Args:
        graph: an ONNX file.
        out: file to write, whose name ends in .xml; the weights go to the .bin file beside it.
        bits: number of bits of a weight.
        keep: names of nodes that stay in float32.

    Raises:
        RuntimeMissing: nncf or openvino is not installed.
        InvalidRequest: `bits` is neither 8 nor 4, `keep` has an unknown name, `out` does not end in .xml, or no weight
            can be stored in 4 bits.
        PipelineError, BackendFailed: the graph cannot be read or compressed.
    """
    if bits not in (8, 4):
        raise InvalidRequest(f"weights cannot have {bits} bits", allowed="8, 4")
    with _nncf(graph, out, keep) as (nncf, model, ignored):
        advanced = require("nncf.quantization.advanced_parameters")
        options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
        if bits == 4:
            adjust = advanced.AdvancedCompressionParameters(
                group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST
            )
            options = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64, "advanced_parameters": adjust}

        def compress(part: Any) -> Any:
            openvino.map_bodies(part, compress)
            return nncf.compress_weights(part, ignored_scope=ignored, **options)

        compressed = compress(model)
        if bits == 4 and "int4" not in openvino.count_weight_types(compressed):
            raise InvalidRequest(
                f"no weight of {graph} can be stored in 4 bits: convolutions, the last layer and layers in `keep` stay "
                "in 8 or more, so the graph would be the one with 8",
                allowed="8 bits",
            )
    openvino.save_openvino_model(compressed, out)


@contextmanager
def _nncf(graph: Path, out: Path, keep: Collection[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the module nncf, the graph as an OpenVINO model, and the NNCF scope of the nodes that must not change.

    In the block, NNCF prints nothing, and its exceptions become BackendFailed.

    Args:
        graph: an ONNX file.
        out: name of the file that will be written, only checked here.
        keep: names of the nodes that must not change.
    """
    if out.suffix != OPENVINO_SUFFIX:
        raise InvalidRequest(f"{out} is no name of an OpenVINO graph", allowed=f"a name that ends in {OPENVINO_SUFFIX}")
    signature = read_signature(graph)
    skeleton = load_graph(graph)
    excluded = check_node_names(keep, skeleton)
    # `named` contains the names of the excluded nodes and of their outputs, because OpenVINO gives a node that makes an
    # output of the graph the name of this output.
    named = {
        name for node in skeleton.graph.node if node_name(node) in excluded for name in (node_name(node), *node.output)
    }
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        os.environ.setdefault("NNCF_CI", "1")  # without this variable, NNCF sends telemetry
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
    """Return the nodes to quantise: nodes with an operator of `operators` and constant weights, except those in `keep`.

    Args:
        graph: path of the graph's file, for the error message.
        model: the graph.
        constants: constants of the graph by name.
        keep: names of nodes that stay unchanged.
        operators: operators to quantise.

    Raises:
        InvalidRequest: no node can be quantised, or `keep` has an unknown name.
    """
    names = _heavy_nodes(model.graph, constants, check_node_names(keep, model), operators)
    if not names:
        raise _nothing_to_quantise(graph, operators)
    return [node for node in model.graph.node if node_name(node) in names]


def _heavy_nodes(
    part: Any, constants: Mapping[str, Constant], excluded: Collection[str], operators: Collection[str]
) -> set[str]:
    """Return the names of the nodes to quantise in a GraphProto, without those in the graphs inside it.

    Args:
        part: a graph, or a graph inside of it.
        constants: constants that its nodes may read, by name.
        excluded: names of nodes that stay unchanged.
        operators: operators to quantise.
    """
    nodes = (node for node in part.node if node.op_type in operators and node_name(node) not in excluded)
    return {node_name(node) for node in nodes if _has_weights(node, constants)}


def _nothing_to_quantise(graph: Path, operators: Collection[str]) -> InvalidRequest:
    allowed = f"a {' or '.join(operators)} with float32 weights that is not in `keep`"
    return InvalidRequest(f"{graph} has nothing to quantise", allowed=allowed)


def _raise_opset(graph: Path, model: Model) -> None:
    """Raise the opset of a model, in place, to 19, the first opset with fp8. `graph` is its path, for the message.

    Raises:
        InvalidRequest: the model has an operator that means something else in opset 19: a reduction with axes as an
            attribute, a Split without lengths, or a RoiAlign without a coordinate transformation mode.
    """
    opset = standard_opset(model)
    if opset >= _WITH_FP8:
        return
    for node in iterate_nodes(model.graph):
        if _changed_meaning(node):
            message = (
                f"{node.op_type} {node_name(node)} of opset {opset} in {graph} has another meaning in opset {_WITH_FP8}"
            )
            raise InvalidRequest(message, allowed=f"opset {_WITH_FP8}", fix="export the model again")
    set_standard_opset(model, _WITH_FP8)
    model.ir_version = max(model.ir_version, _IR_WITH_FP8)


def _changed_meaning(node: Node) -> bool:
    names = {attribute.name for attribute in node.attribute}
    return (
        (node.op_type.startswith("Reduce") and "axes" in names)
        or (node.op_type == "Split" and len(node.input) < 2)
        or (node.op_type == "RoiAlign" and "coordinate_transformation_mode" not in names)
    )


def _has_weights(node: Node, constants: Mapping[str, Constant]) -> bool:
    """Return whether the weights of a node, and its bias if it has one, are constants that can be quantised.

    `constants` are the constants of the graph by name.
    """
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
    is_matrix = node.op_type == "Conv" or len(weights.shape) == 2
    channels = (weights.shape[output_axis(node)],)
    return is_matrix and plain and all(constant.shape == channels for constant in bias if constant)


def _rounded_outputs(model: Model, heavy: Sequence[Node]) -> set[str]:
    """Return the names of the outputs to quantise: one for each convolution among `heavy`, the quantised nodes.

    Runtimes fuse a convolution to an integer kernel only where its output is quantised too. Where only an activation
    function reads the convolution's output, runtimes fuse this function as well. The result then has the name of the
    function's output, otherwise that of the convolution's output.
    """
    results = {value.name for value in model.graph.output}
    consumers: dict[str, list[Node]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    rounded = set()
    for node in heavy:
        if node.op_type == "Conv":
            (name,) = node.output
            readers = consumers.get(name, [])
            activated = len(readers) == 1 and readers[0].op_type in _ACTIVATIONS and name not in results
            rounded.add(readers[0].output[0] if activated else name)
    return rounded


def _check_feeds(feeds: Feeds) -> None:
    if not feeds:
        raise InvalidRequest(
            "there are no feeds to calibrate with", allowed="inputs that were recorded while the network ran"
        )


def _ranges(graph: Path, names: Sequence[str], feeds: Feeds) -> Ranges:
    """Run the graph on all feeds (recorded inputs) and return the minimum and maximum of each tensor in `names`.

    Raises:
        BackendFailed: the graph cannot be run, or gives values that are not finite.
    """
    model: Model = load_graph(graph)
    helper = require("onnx.helper")
    del model.graph.output[:]
    for place, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            model.graph.node.append(helper.make_node(operator, [name], [f"{operator}.{place}"], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(f"{operator}.{place}", _FLOAT, []))
    evaluate = ort.make_evaluator(model.SerializeToString(), graph.parent)
    extremes = np.array([list(evaluate(dict(feed)).values()) for feed in feeds])
    if not np.isfinite(extremes).all():
        raise BackendFailed(f"{graph} gives values that are not finite", fix="check the recorded inputs")
    minima, maxima = extremes[:, 0::2].min(axis=0), extremes[:, 1::2].max(axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, minima, maxima, strict=True)}
