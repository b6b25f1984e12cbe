"""The OpenVINO backend: f32, and bf16 or f16 where the processor has them. The only file that names this runtime."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.feeds import fixed
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors
from stillhouse.backends.runtime import INSTALL, BackendStatus, reported, require
from stillhouse.backends.signature import Axes, Signature
from stillhouse.core import TensorSpec
from stillhouse.errors import UnsupportedPrecision

_NAME = "openvino"
_DEVICE = "CPU"
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # our name: the device's
_HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"}
_INT8 = {"i8": "int8", "u8": "int8"}


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open an ONNX file.

    Raises:
        RuntimeMissing: openvino is not installed.
        UnsupportedPrecision: the processor does not have what was asked for. OpenVINO itself would not say so: it
            takes the hint and computes in f32.
        BackendFailed: openvino refuses the graph.
    """
    core = require(_NAME).Core()
    precisions = offered(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    if options.precision not in precisions:
        given = f"precision {options.precision!r} on {_NAME} with this processor"
        raise UnsupportedPrecision(given, allowed=", ".join(precisions))
    axes = fixed(options.shapes, signature.inputs)
    with reported(_NAME, graph, "open"):
        compiled = _compile(core, graph, axes, options)
        apart = options.streams > 1
        inputs = tuple(_spec(name, compiled.input(name), apart) for name in signature.inputs)
        outputs = tuple(_spec(name, compiled.output(name), apart) for name in signature.outputs)
        requests = [compiled.create_infer_request() for _ in range(options.streams)]
        precision = _executed(compiled)
    if apart:
        axes = {name: (signature.inputs[name][0], *shape[1:]) for name, shape in axes.items()}
    run = partial(_run_apart if apart else _run_together, requests, [spec.name for spec in outputs])
    return GraphRunner(graph, _NAME, precision, inputs, outputs, axes, run)


def status() -> BackendStatus:
    """What OpenVINO can do on this machine."""
    runtime = require(_NAME)
    core = runtime.Core()
    precisions = offered(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    version = runtime.__version__.partition("-")[0]
    return BackendStatus(_NAME, version, tuple(core.available_devices), precisions, None, INSTALL[_NAME])


def offered(capabilities: Collection[str]) -> tuple[str, ...]:
    """The precisions that can be asked for on a device with these OPTIMIZATION_CAPABILITIES.

    >>> offered(["FP32", "INT8", "BF16"])
    ('f32', 'bf16', 'auto')
    """
    return (*(name for name, capability in _CAPABILITIES.items() if capability in capabilities), "auto")


def _run_together(requests: list[Any], names: list[str], feeds: Tensors) -> list[NDArray[Any]]:
    # The request's output buffers are overwritten by its next run, so they are copied out of it.
    results = requests[0].infer(feeds, share_inputs=True, share_outputs=False)
    return [results[name] for name in names]


def _run_apart(requests: list[Any], names: list[str], feeds: Tensors) -> list[NDArray[Any]]:
    """Every row by itself, as many at a time as there are requests."""
    rows = [{name: array[row : row + 1] for name, array in feeds.items()} for row in range(_row_count(feeds))]
    results: list[list[NDArray[Any]]] = []
    for first in range(0, len(rows), len(requests)):
        wave = list(zip(requests, rows[first:], strict=False))
        try:
            for request, row in wave:
                request.start_async(row, share_inputs=True)
        finally:  # a request reads its row until it is done, whatever became of the others
            for request, _ in wave:
                request.wait()
        results += [[request.get_tensor(name).data.copy() for name in names] for request, _ in wave]
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def _row_count(feeds: Tensors) -> int:
    return len(next(iter(feeds.values())))


def _compile(core: Any, graph: Path, axes: Mapping[str, Axes], options: RunnerOptions) -> Any:
    # Not compile_model(path): its cache key knows the .onnx file only, so changed weights beside it would go unseen.
    model = core.read_model(graph)
    shapes = {name: [axis if isinstance(axis, int) else -1 for axis in shape] for name, shape in axes.items()}
    if options.streams > 1:
        shapes = {name: [1, *shape[1:]] for name, shape in shapes.items()}
    if options.shapes or options.streams > 1:
        model.reshape(shapes)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": options.streams}
    if options.precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = options.precision
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.cache:
        config["CACHE_DIR"] = str(options.cache)
    return core.compile_model(model, _DEVICE, config)


def _executed(compiled: Any) -> str:
    """The precision of the layers that do the work; of a network without such layers, the hint as it was taken."""
    layers = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    found = {layer["runtimePrecision"].astype(str) for layer in layers if layer["layerType"].astype(str) in _HEAVY}
    names = {_INT8.get(name, name) for name in found} or {compiled.get_property("INFERENCE_PRECISION_HINT").to_string()}
    return names.pop() if len(names) == 1 else "mixed"


def _spec(name: str, port: Any, apart: bool) -> TensorSpec:
    lengths = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
    shape = (None, *lengths[1:]) if apart else tuple(lengths)
    return TensorSpec(name, port.element_type.to_dtype().name, shape)
