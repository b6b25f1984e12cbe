"""The OpenVINO backend: f32, and bf16 or f16 where the processor has them. Only this module imports openvino."""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.backend import Backend, BuildGraph, CandidateContext, CandidateSpec, Recipe
from stillhouse.backends.group_norm import GROUP_NORM
from stillhouse.backends.int8_attention import INT8_ATTENTION, multiplies_bf16
from stillhouse.backends.openvino_attention import replace_attentions
from stillhouse.backends.openvino_group_norm import replace_group_norms
from stillhouse.backends.openvino_nodes import FunctionNodes
from stillhouse.backends.openvino_splits import split_convolutions, split_gates
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors, check_settings, fix_axes
from stillhouse.backends.runtime import BackendStatus, install_command, require, translate_errors
from stillhouse.backends.signature import AXES_KEY, OPENVINO_SUFFIX, Axes, Signature
from stillhouse.core import TensorSpec
from stillhouse.cpu import limited_cores, processor_flags, usable_cores
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision

WITHOUT_BIAS_SUFFIX = "/WithoutBiases"
"""Suffix that OpenVINO adds to a node's name where it splits off the bias."""
_NAME = "openvino"
_DEVICE = "CPU"
_RANK = 50
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""OpenVINO's name of each precision, by its name in Stillhouse."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "dynamic_quantization": ("0", "1"),
    "attention": ("plain", "int8"),
    "layers": ("plain", "rewritten"),
    "axes": ("fixed", "open", "default"),
}
"""Allowed values of each setting; the first value is the default."""
_ATTENTION, _REWRITTEN = "attention: int8", "layers: rewritten"
_VNNI_KEY = ("stillhouse", "needs_vnni")
_GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_GROUP = 32
"""Number of neighbouring inputs of a layer that share a scale where inputs are quantised at run time. OpenVINO's own
default. Larger groups are less exact: on a layer of 256 inputs, 32 give 45.4 dB and 64 give 44.4 dB."""
_EXPANDED_TYPES = {"i4": "int4", "u4": "int4", "i8": "int8", "u8": "int8"}
"""Type of stored weights, by OpenVINO's name of the type."""
_HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"}
_LOOPS = {"Loop", "TensorIterator"}
_FUSED = "Subgraph"
_RUNTIME_KEYS = {"layerType", "originalLayersNames", "primitiveType", "runtimePrecision"}
_PRECISION_NAMES = {"f32": "f32", "bf16": "bf16", "f16": "f16", "i8": "int8", "u8": "int8", "I8": "int8"}


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open an ONNX file or an OpenVINO graph (.xml) on the processor.

    Args:
        graph: path of the graph.
        signature: inputs, outputs and weights files of the graph.
        options: precision, threads, static shapes, streams, cache and settings of the backend.

    Settings:
        dynamic_quantization: 1 rounds the inputs of layers whose weights are stored as integers to int8 at run time, in
            groups of 32 with a scale for each; without VNNI it has no effect. OpenVINO would do so by default, also
            where f32 is requested; a layer then keeps about 45 dB, against 130 dB without. The result of a row does not
            depend on the other rows.
        axes: fixed opens a network of static shapes or several streams once for each size of pictures; open once for
            all sizes, which costs some speed; default once for the pipeline's default size and once for all others.
            Only pipelines read it, see `runners.opening_shapes`.
        attention: int8 replaces attentions over many tokens by `int8_attention`. Needs static shapes or streams. The
            compiled network is not cached.
        layers: rewritten replaces layers by equal ones that are faster: in bf16 group normalisations by `group_norm`,
            where the machine has it, and layers that are faster in parts, see `openvino_splits`. Needs what
            attention: int8 needs.

    Raises:
        InvalidRequest: an unknown setting; or attention: int8 or layers: rewritten with open axes.
        RuntimeMissing: openvino is not installed; attention: int8 on a machine without it; or a graph that was
            quantised for VNNI, on a processor without it.
        UnsupportedPrecision: the processor does not have the precision. Without this check, OpenVINO would silently
            compute in f32.
        BackendFailed: openvino refuses the graph.
    """
    check_settings(_NAME, options.settings, SETTINGS)
    core = require(_NAME).Core()
    precisions = supported_precisions(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    if options.precision not in precisions:
        message = f"{_NAME} cannot compute in precision {options.precision!r} on this processor"
        raise UnsupportedPrecision(message, allowed=", ".join(precisions))
    axes = fix_axes(options.shapes, signature.inputs)
    with translate_errors(_NAME, graph, "open"):
        model = _read_model(core, graph, axes, options)
        if model.has_rt_info(list(_VNNI_KEY)) and not has_vnni():
            raise RuntimeMissing(
                f"{graph} was quantised for processors with VNNI instructions, and would overflow on this one",
                fix="quantise it on this machine: stillhouse accelerate",
            )
        config = compile_properties(options)
        weight_types = count_weight_types(model)
        nodes = replace_layers(model, options)
        compiled = core.compile_model(model, _DEVICE, config)
        nodes.release()
        per_row = options.streams > 1
        inputs = tuple(_spec(name, compiled.input(name), per_row) for name in signature.inputs)
        outputs = tuple(_spec(name, compiled.output(name), per_row) for name in signature.outputs)
        requests = [compiled.create_infer_request() for _ in range(options.streams)]
        layers = _layer_precisions(core, compiled, model, config)
    # A network without convolutions, matrix products and attentions has no layer precisions (`layers` is empty). The
    # precision that OpenVINO was set to is then reported.
    executed = set(layers) or {compiled.get_property("INFERENCE_PRECISION_HINT").to_string()}
    precision = executed.pop() if len(executed) == 1 else "mixed"
    if per_row:
        axes = {name: (*signature.inputs[name][:1], *shape[1:]) for name, shape in axes.items()}
    run = partial(_run_rows if per_row else _run_batch, requests, [spec.name for spec in outputs])
    return GraphRunner(graph, _NAME, precision, inputs, outputs, axes, run, layers, weight_types=weight_types)


def status() -> BackendStatus:
    """Return the version, devices and precisions of OpenVINO on this machine.

    Raises:
        RuntimeMissing: openvino is not installed.
    """
    runtime = require(_NAME)
    core = runtime.Core()
    precisions = supported_precisions(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    version = runtime.__version__.partition("-")[0]
    return BackendStatus(_NAME, version, tuple(core.available_devices), precisions, None, install_command(_NAME))


def supported_precisions(capabilities: Collection[str]) -> tuple[str, ...]:
    """Return the precisions that `open_graph` accepts on a device with these OPTIMIZATION_CAPABILITIES.

    >>> supported_precisions(["FP32", "INT8", "BF16"])
    ('f32', 'bf16', 'auto')
    """
    return (*(name for name, capability in _CAPABILITIES.items() if capability in capabilities), "auto")


def read_openvino_model(graph: Path, signature: Signature) -> Any:
    """Read an ONNX file as an OpenVINO model that NNCF can quantise. Weights are read from disk when they are needed.

    Nodes keep their names; where OpenVINO splits off a bias, it adds `WITHOUT_BIAS_SUFFIX` to the name. torch's
    exporter writes the weights of linear layers behind a Transpose. The Transpose is folded into the product, so that
    NNCF recognises the weights. The names of the inputs' axes, which `signature` has, are stored in the model.

    Raises:
        RuntimeMissing: openvino is not installed.
        BackendFailed: openvino cannot read the graph.
    """
    core = require(_NAME).Core()
    with translate_errors(_NAME, graph, "read"):
        model = core.read_model(graph)
        for node in model.get_ordered_ops():
            if node.get_type_name() == "MatMul":
                _fold_transpose(node)
        model.validate_nodes_and_infer_types()
        if any(_bodies(model)):
            model = _with_own_constants(core, model)
    model.set_rt_info(json.dumps({name: list(axes) for name, axes in signature.inputs.items()}), list(AXES_KEY))
    return model


def _with_own_constants(core: Any, model: Any) -> Any:
    """Return a copy of a model whose branches and loop bodies have constants of their own.

    OpenVINO's reader of ONNX files shares the constants among all of them, and NNCF then fails with "Could not find a
    node". The format .xml stores the constants of each body by themselves.
    """
    with TemporaryDirectory(prefix="stillhouse-") as directory:
        path = Path(directory) / f"model{OPENVINO_SUFFIX}"
        require(_NAME).save_model(model, path, compress_to_fp16=False)
        return core.read_model(path).clone()


def has_vnni() -> bool:
    """Return whether this processor adds 8-bit products in 32 bits, so that 8-bit weights cannot overflow."""
    return not processor_flags().isdisjoint(("avx_vnni", "avx512_vnni", "amx_int8"))


def demand_vnni(model: Any) -> None:
    """Note in an OpenVINO model that `open_graph` must refuse it on processors without VNNI."""
    model.set_rt_info("1", list(_VNNI_KEY))


def map_bodies(model: Any, change: Callable[[Any], Any]) -> None:
    """Replace each branch of If, and each loop body, by what `change` returns for it. `model` is changed in place."""
    for node in model.get_ops():
        if node.get_type_name() == "If":
            for branch in range(2):
                node.set_function(branch, change(node.get_function(branch)))
        elif node.get_type_name() in _LOOPS:
            node.set_function(change(node.get_function()))


def save_openvino_model(model: Any, out: Path) -> None:
    """Write an OpenVINO model to `out` and its weights to the .bin file beside it, atomically.

    Raises:
        InvalidRequest: `out` does not end in .xml.
    """
    if out.suffix != OPENVINO_SUFFIX:
        raise InvalidRequest(f"{out} is no name of an OpenVINO graph", allowed=f"a name that ends in {OPENVINO_SUFFIX}")
    temporary = out.with_name(f".{out.stem}.{os.getpid()}{OPENVINO_SUFFIX}")
    try:
        with translate_errors(_NAME, out, "write"):
            require(_NAME).save_model(model, temporary, compress_to_fp16=False)
        for suffix in (".bin", OPENVINO_SUFFIX):
            temporary.with_suffix(suffix).replace(out.with_suffix(suffix))
    finally:
        for suffix in (".bin", OPENVINO_SUFFIX):
            temporary.with_suffix(suffix).unlink(missing_ok=True)


def _fold_transpose(product: Any) -> None:
    """Replace x @ transpose(W), where W is constant, by one MatMul that has the transposition as an attribute.

    Other products stay unchanged.

    Args:
        product: a MatMul node of an OpenVINO model, which is changed in place.
    """
    transpose = product.input_value(1).get_node()
    if transpose.get_type_name() != "Transpose" or product.get_attributes()["transpose_b"]:
        return
    weights = transpose.input_value(0).get_node()
    source = weights.input_value(0).get_node() if weights.get_type_name() == "Convert" else weights
    order = transpose.input_value(1).get_node()
    if source.get_type_name() == order.get_type_name() == "Constant" and order.get_data().tolist() == [1, 0]:
        first, transpose_a = product.input_value(0), product.get_attributes()["transpose_a"]
        folded = require("openvino.opset13").matmul(first, transpose.input_value(0), transpose_a, True)
        folded.set_friendly_name(product.get_friendly_name())
        require("openvino.utils").replace_node(product, folded)


def _run_batch(requests: list[Any], names: list[str], feeds: Tensors) -> list[NDArray[Any]]:
    # The next run overwrites the output buffers of the request, so the outputs are copied (share_outputs=False).
    results = requests[0].infer(feeds, share_inputs=True, share_outputs=False)
    return [results[name] for name in names]


def _run_rows(requests: list[Any], names: list[str], feeds: Tensors) -> list[NDArray[Any]]:
    """Run every row of a batch by itself and return the outputs, joined again, in the order of `names`.

    Args:
        requests: inference requests; each runs one row at a time, side by side with the other requests.
        names: names of the outputs.
        feeds: input arrays by name; the first axis is the batch.

    Raises:
        BackendFailed: an input or an output has no batch axis, so that rows cannot be split or joined.
    """
    rows = [{name: array[row : row + 1] for name, array in feeds.items()} for row in range(_row_count(feeds))]
    results: list[list[NDArray[Any]]] = []
    for first in range(0, len(rows), len(requests)):
        batch = list(zip(requests, rows[first:], strict=False))
        try:
            for request, row in batch:
                request.start_async(row, share_inputs=True)
        finally:  # waits also after an error, since requests that have started still read their input rows
            for request, _ in batch:
                request.wait()
        results += [[request.get_tensor(name).data.copy() for name in names] for request, _ in batch]
    columns = list(zip(*results, strict=True))
    for name, column in zip(names, columns, strict=True):
        for part in column:
            if part.shape[:1] != (1,):
                raise BackendFailed(
                    f"output {name!r} has shape {list(part.shape)} for one row, so rows cannot be joined",
                    allowed="outputs whose first axis is the batch, where streams is above 1",
                    fix="open the network with streams=1",
                )
    return [np.concatenate(column) for column in columns]


def _row_count(feeds: Tensors) -> int:
    """Return the length of the first axis, the batch, of the inputs.

    Raises:
        BackendFailed: the inputs have first axes of different lengths, or an input has no axis, or there is no row.
    """
    lengths = {array.shape[:1] for array in feeds.values()}
    if len(lengths) != 1 or not lengths.isdisjoint({(), (0,)}):
        found = ", ".join(f"{name!r} of shape {list(array.shape)}" for name, array in feeds.items())
        raise BackendFailed(
            f"rows cannot be split: {found}",
            allowed="inputs whose first axis is the batch, of one length from 1, where streams is above 1",
            fix="open the network with streams=1",
        )
    return len(next(iter(feeds.values())))


def _read_model(core: Any, graph: Path, axes: Mapping[str, Axes], options: RunnerOptions) -> Any:
    # The graph is read here and not by compile_model(path), whose cache key covers the .onnx file, but not the weights
    # beside it: after a change of the weights, OpenVINO would load the old network.
    model = core.read_model(graph)
    shapes = {name: [axis if isinstance(axis, int) else -1 for axis in shape] for name, shape in axes.items()}
    if options.streams > 1:
        shapes = {name: [*[1][: len(shape)], *shape[1:]] for name, shape in shapes.items()}
    if options.shapes or options.streams > 1:
        model.reshape(shapes)
    return model


def replace_layers(model: Any, options: RunnerOptions) -> FunctionNodes:
    """Replace the layers of an OpenVINO model that the settings name, in place; return the nodes that were added.

    The nodes must be released when the model was compiled.

    Raises:
        InvalidRequest: layers are to be replaced, and the model has open axes.
        RuntimeMissing: attention: int8 on a machine without it.
    """
    nodes, requested = FunctionNodes(require(_NAME)), _replacements(options.settings)
    if not requested:
        return nodes
    if model.is_dynamic():
        raise InvalidRequest(f"{requested[0]} was requested for open axes", allowed="static shapes, or several streams")
    threads = max(1, (options.threads or usable_cores()) // options.streams)
    is_bf16 = options.precision == "bf16"
    if _ATTENTION in requested:
        replace_attentions(model, nodes, threads, is_bf16=is_bf16 and multiplies_bf16())
    if _REWRITTEN in requested:
        split_gates(model, nodes.runtime)
        split_convolutions(model, nodes.runtime)
        if is_bf16 and not GROUP_NORM.missing_reason(processor_flags()):
            replace_group_norms(model, nodes, threads)
    model.validate_nodes_and_infer_types()
    return nodes


def _replacements(settings: Mapping[str, str]) -> list[str]:
    """Return the settings that replace layers of a model, as "name: value"."""
    given = [f"{name}: {value}" for name, value in settings.items()]
    return [setting for setting in (_ATTENTION, _REWRITTEN) if setting in given]


def compile_properties(options: RunnerOptions) -> dict[str, Any]:
    """Return the properties with which OpenVINO compiles a network, by name: precision, streams, threads and cache.

    Threads are not pinned to cores. OpenVINO pins those of each network to the same cores, so that two networks that
    run at once, such as denoiser and decoder of a server, wait for each other although a core is idle.
    """
    is_quantised = options.settings.get("dynamic_quantization") == "1"
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": options.streams,
        "ENABLE_CPU_PINNING": False,
        _GROUP_SIZE: _GROUP if is_quantised else 0,
    }
    if options.precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = options.precision
    threads = options.threads or limited_cores()
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    if options.cache and not _replacements(options.settings):
        # Each combination of options has its own cache directory, because OpenVINO's cache key lacks the options: a
        # network that was compiled for f32 was loaded for f16, and returned NaN.
        name = f"{options.precision}-{threads or 'all'}-{options.streams}{'-quantised' if is_quantised else ''}"
        config["CACHE_DIR"] = str(options.cache / name)
    return config


def _layer_precisions(core: Any, compiled: Any, model: Any, config: Mapping[str, Any]) -> dict[str, int]:
    """Count the convolutions, matrix products and attentions of a compiled network by the precision they compute in.

    Layers in the branches of If and in loop bodies are counted once each. OpenVINO shows only the If or the loop, so
    each branch or body is compiled once more by itself, with the same configuration, and counted.

    Matrix products of the model that are fused into a "Subgraph" layer, as in attention, count too. The precision is
    the end of the kernel's name, which is the type of the kernel's first input. OpenVINO's field "runtimePrecision" is
    only a fallback: for a layer whose weights are stored as integers, the field has the type of the weights, even where
    the layer expands the weights and multiplies in f32. The name of such a layer's kernel is the same where the layer
    rounds its inputs to int8 at run time, which it does where the compiled network has a group size above 0 and the
    processor has VNNI.

    Args:
        core: OpenVINO's Core.
        compiled: the network as OpenVINO compiled it.
        model: the network before compilation.
        config: configuration with which the network was compiled.
    """
    # Without VNNI, OpenVINO does not round inputs, whatever the group size says.
    is_quantised = int(compiled.get_property(_GROUP_SIZE)) > 0 and has_vnni()
    products = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "MatMul"}
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        layer = {key: value.astype(str) for key, value in node.get_rt_info().items() if key in _RUNTIME_KEYS}
        fused = products.intersection(layer.get("originalLayersNames", "").split(","))
        if heavy := 1 if layer["layerType"] in _HEAVY else len(fused) if layer["layerType"] == _FUSED else 0:
            counts[_precision(layer["primitiveType"], layer["runtimePrecision"], is_quantised)] += heavy
    uncached = {name: value for name, value in config.items() if name != "CACHE_DIR"}
    for body in _bodies(model):
        counts.update(_layer_precisions(core, core.compile_model(body, _DEVICE, uncached), body, uncached))
    return dict(sorted(counts.items()))


def _bodies(model: Any) -> Iterator[Any]:
    """Iterate over the models inside a model: the branches of If, and the bodies of loops."""
    for node in model.get_ops():
        if node.get_type_name() == "If":
            yield from (node.get_function(branch) for branch in range(2))
        elif node.get_type_name() in _LOOPS:
            yield node.get_function()


def _precision(kernel: str, layer: str, is_quantised: bool) -> str:
    """Return the precision in which a layer computes.

    Args:
        kernel: name of the layer's kernel, which ends in the type of its first input.
        layer: the layer's "runtimePrecision".
        is_quantised: whether layers with integer weights and float32 inputs round these inputs to int8.
    """
    found = _PRECISION_NAMES.get(kernel.rpartition("_")[2]) or _PRECISION_NAMES.get(layer, layer)
    return "int8" if is_quantised and found == "f32" and layer in _EXPANDED_TYPES else found


def count_weight_types(model: Any) -> dict[str, int]:
    """Count the weights that an OpenVINO model stores as integers and expands before use, by type: int4, int8.

    Weights are the constants that are converted and then scaled, or shifted by zero points and scaled. The zero points
    themselves are not counted. Weights in branches and loop bodies are.
    """
    counts: Counter[str] = Counter()
    for body in _bodies(model):
        counts.update(count_weight_types(body))
    for node in model.get_ops():
        kind = node.get_element_type().to_string() if node.get_type_name() == "Constant" else ""
        if kind in _EXPANDED_TYPES and any(map(_is_scaled, _readers(node))):
            counts[_EXPANDED_TYPES[kind]] += 1
    return dict(sorted(counts.items()))


def has_quantization_ranges(model: Any) -> bool:
    """Return whether an OpenVINO model, or a branch or loop body in it, rounds a tensor (has a FakeQuantize)."""
    kinds = {node.get_type_name() for node in model.get_ops()}
    return "FakeQuantize" in kinds or any(map(has_quantization_ranges, _bodies(model)))


def _is_scaled(place: Any) -> bool:
    """Return whether a place that reads a constant converts it, and the result is the first input of a scaling."""
    node = place.get_node()
    return node.get_type_name() == "Convert" and any(
        reader.get_index() == 0 and reader.get_node().get_type_name() in ("Subtract", "Multiply")
        for reader in _readers(node)
    )


def _readers(node: Any) -> Iterable[Any]:
    """Return the places (inputs of other nodes) that read the first output of a node."""
    readers: Iterable[Any] = node.output(0).get_target_inputs()
    return readers


def _spec(name: str, port: Any, per_row: bool) -> TensorSpec:
    lengths = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
    shape = (*[None][: len(lengths)], *lengths[1:]) if per_row else tuple(lengths)
    return TensorSpec(name, port.element_type.to_dtype().name, shape)


def candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of OpenVINO that `stillhouse accelerate` measures, the likeliest to be fast first.

    A large network takes minutes for each, so that a budget may end after a few.
    """

    def spec(recipe: str = "f32", precision: str = "f32", **options: str) -> CandidateSpec:
        return CandidateSpec(recipe, precision, options, _RANK)

    streams = {"streams": str(max(2, context.threads))}
    if context.cost == "low":
        yield spec(shapes="static")
        return
    if context.role == "denoiser":
        yield spec("int8-static", precision="bf16", attention="int8", layers="rewritten", **streams)
        if context.cost == "high":  # for calls of one row, which streams do not share
            yield spec("int8-static", precision="bf16", attention="int8", layers="rewritten", shapes="static")
    if context.role == "decoder":
        yield spec("int8-static", precision="bf16", shapes="static", layers="rewritten")
        yield spec(precision="bf16", shapes="static", layers="rewritten")
    yield spec(precision="bf16", shapes="static")
    if context.cost == "high":
        yield spec("int8-static", precision="bf16", layers="rewritten", **streams)
        if context.role == "denoiser":
            yield spec(precision="bf16", attention="int8", layers="rewritten", **streams)
        yield spec(precision="bf16", layers="rewritten", **streams)
    if context.cost == "high" or context.role == "decoder":
        yield spec("int8-static", precision="bf16", shapes="static")
        yield spec("int8-static", shapes="static")
    yield spec(shapes="static")
    if context.cost == "high":
        yield spec("int8-static", **streams)
    else:
        yield spec(precision="bf16", **streams)
    yield spec(**streams)
    yield spec()
    if context.has_integer_weights:
        yield spec(shapes="static", dynamic_quantization="1")
    if context.cost == "high":
        if context.threads > 1:
            yield spec(shapes="static", threads="1")
        for recipe in ("int8-weights", "int4-weights"):
            yield spec(recipe, shapes="static")
            yield spec(recipe, shapes="static", dynamic_quantization="1")
        yield spec(precision="f16", shapes="static")
    if context.role == "decoder" and context.decoder_side:
        yield spec(tile=str(context.decoder_side // 2))


def exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Return why a configuration of OpenVINO cannot run on this machine; "" where it can."""
    return INT8_ATTENTION.missing_reason(context.instructions) if _ATTENTION in _replacements(spec.options) else ""


def defaults(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of OpenVINO among which an import chooses.

    Without bf16 instructions, bf16 is emulated and slower than float32. Two streams run the rows of a guided picture.
    Static shapes are offered where compiling takes a second, because each batch size is compiled by itself.
    """
    precisions = [precision for precision in ("bf16", "f32") if precision in ("f32", *context.status.precisions)]
    for precision in precisions:
        yield CandidateSpec(precision=precision, rank=_RANK)
        if context.role == "denoiser" and not context.is_large:
            yield CandidateSpec(precision=precision, options={"shapes": "static", "axes": "default"}, rank=_RANK)
        if context.role == "denoiser" and context.threads > 1:
            yield CandidateSpec(precision=precision, options={"streams": "2", "axes": "open"}, rank=_RANK)


def _build_int8(graph: Path, out: Path, feeds: Sequence[Mapping[str, NDArray[Any]]], keep: Sequence[str]) -> None:
    # This import is not at the top, since `quantize` imports this module.
    from stillhouse.backends.quantize import quantize_openvino

    quantize_openvino(graph, out, feeds, keep=keep)


def _weights_builder(bits: Literal[4, 8]) -> BuildGraph:
    def build(graph: Path, out: Path, feeds: Sequence[Mapping[str, NDArray[Any]]], keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import compress_openvino_weights

        compress_openvino_weights(graph, out, bits=bits, keep=keep)

    return build


def _recipe(build: BuildGraph) -> Recipe:
    return Recipe(build, f"model{OPENVINO_SUFFIX}", requires=("nncf",))


BACKEND = Backend(
    _NAME,
    open_graph,
    status,
    install_command(_NAME),
    settings=SETTINGS,
    supports_streams=True,
    packages=(_NAME, "nncf"),
    recipes={
        "int8-static": _recipe(_build_int8),
        "int8-weights": _recipe(_weights_builder(8)),
        "int4-weights": _recipe(_weights_builder(4)),
    },
    candidates=candidates,
    exclusion=exclusion,
    defaults=defaults,
)
