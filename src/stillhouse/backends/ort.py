"""The onnxruntime backend: float32 on the CPU. The only file that names this runtime."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.backends.feeds import bound, fixed
from stillhouse.backends.runner import GraphRunner, RunnerOptions
from stillhouse.backends.runtime import INSTALL, BackendStatus, reported, require
from stillhouse.backends.signature import Signature
from stillhouse.core import TensorSpec
from stillhouse.errors import UnsupportedPrecision

_NAME = "onnxruntime"
_PRECISIONS = ("f32",)
_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
_SILENT = 4  # severity "fatal": everything milder also arrives as an exception


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open an ONNX file.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
        UnsupportedPrecision: anything but f32 was asked for.
        BackendFailed: onnxruntime refuses the graph.
    """
    if options.precision not in _PRECISIONS:
        raise UnsupportedPrecision(f"precision {options.precision!r} on {_NAME}", allowed=", ".join(_PRECISIONS))
    axes = fixed(options.shapes, signature.inputs)
    runtime = require(_NAME)
    with reported(_NAME, graph, "open"):
        settings = _settings(runtime, options, bound(options.shapes, signature.inputs))
        session = runtime.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    # An axis without a name stays dynamic in the runtime; it is held to its length by the check of the feeds.
    inputs = tuple(_spec(node, axes[node.name]) for node in session.get_inputs())
    outputs = tuple(_spec(node, node.shape) for node in session.get_outputs())
    names = [spec.name for spec in outputs]
    # It has no property for the executed precision: its CPU kernels compute in the types that the graph names.
    precision = signature.arithmetic
    return GraphRunner(graph, _NAME, precision, inputs, outputs, axes, lambda feeds: session.run(names, feeds))


def status() -> BackendStatus:
    """What onnxruntime can do on this machine."""
    devices = [name.removesuffix("ExecutionProvider") for name in require(_NAME).get_available_providers()]
    usable = tuple(device for device in devices if device != "Azure")  # a client of a remote service
    return BackendStatus(_NAME, require(_NAME).__version__, usable, _PRECISIONS, None, INSTALL[_NAME])


def _settings(runtime: Any, options: RunnerOptions, lengths: Mapping[str, int]) -> Any:
    settings = runtime.SessionOptions()
    settings.log_severity_level = _SILENT
    settings.intra_op_num_threads = options.threads or _default_threads()
    settings.inter_op_num_threads = 1
    # A pipeline holds several sessions, and often a second runtime. Threads that spin after their work is done take
    # the cores from whichever runs next (onnxruntime issues 13808 and 17011); to sleep costs microseconds per layer.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for axis, length in lengths.items():
        settings.add_free_dimension_override_by_name(axis, length)
    return settings


def _default_threads() -> int:
    """0, the runtime's own default, counts the whole machine's cores, also where this process may use only some."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed


def _spec(node: Any, axes: Sequence[int | str | None]) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(a if isinstance(a, int) else None for a in axes))
