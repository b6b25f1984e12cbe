"""The TensorRT backend: an ONNX graph becomes an engine for one GPU. TensorRT for RTX is driven by the same code.

Networks are strongly typed: what is computed in which precision stands in the graph, where `precision` and `quantize`
put it, and TensorRT 11 knows nothing else. Building needs no GPU for TensorRT for RTX; running does.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.engine import Chip, Shape, Shapes, found_or_built, graph_key, shapes_of
from stillhouse.backends.engine_weights import EngineWeights, Place, places
from stillhouse.backends.feeds import fixed
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors
from stillhouse.backends.runtime import INSTALL, BackendStatus, reported, require
from stillhouse.backends.signature import IR, Signature
from stillhouse.backends.torch_device import CUDA, imported, kind_of
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu, check_index, gpus, index_of, no_gpu

MODULES: Mapping[str, str] = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})
"""The Python module of each backend of this file."""
SETTINGS: Mapping[str, tuple[str, ...]] = {"graphs": ("none", "cuda"), "weights": ("fixed", "refit")}
"""Allowed values by name; the first is the default. Beside these there are `device`: cuda, cuda:1, and `rows`: the
least and the most, 1-8."""

_AS_WRITTEN = "auto"
_ROWS = re.compile(r"(\d+)-(\d+)")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}
_WORKSPACE = 4 << 30
"""Bytes that a layer may take while it computes, at most."""


def open_graph(graph: Path, signature: Signature, options: RunnerOptions, name: str = "tensorrt") -> GraphRunner:
    """Open an ONNX file on a GPU; its engine is built where there is none, which takes minutes.

    There is one precision, auto: what the graph says. Engines are kept in `options.cache`, or else in
    `$XDG_CACHE_HOME/stillhouse/engines`; one for another chip, version or graph is built anew, with a warning.

    Settings:
        device: cuda, cuda:1: which GPU; without it, the first.
        rows: 1-8: the first axis may have any length from the one to the other. Without it, an engine is static.
        graphs: cuda: all launches of an evaluation at once, see `torch_graphs`.
        weights: refit: adapters may change them, and the engine stays. It may be slower than one whose weights are
            fixed, which TensorRT folds.

    Raises:
        InvalidRequest: an unknown setting, a GPU that is not there, a graph of OpenVINO's, an input with open axes and
            no shape, or nothing to refit.
        RuntimeMissing: TensorRT or torch, which holds its memory, is not installed, or there is no GPU.
        UnsupportedPrecision: anything but auto and f32 of a graph that computes in f32.
        BackendFailed: TensorRT refuses the graph.
    """
    if graph.suffix == IR:
        raise InvalidRequest(f"{graph} is a graph of OpenVINO's", allowed="an ONNX file", fix="open it on openvino")
    if options.precision not in (_AS_WRITTEN, signature.arithmetic):
        given = f"precision {options.precision!r} of a graph that computes in {signature.arithmetic}"
        raise UnsupportedPrecision(given, allowed=_AS_WRITTEN, fix="make a graph in that precision")
    rows, graphs, weights, device = _settings(options.settings)
    shapes = shapes_of(signature, options.shapes, rows)
    axes = fixed({name: one.usual for name, one in shapes.items()} if rows is None else {}, signature.inputs)
    runtime = require(MODULES[name])
    gpu = _gpu(name, device)
    torch = imported()
    refitted = _refitted(graph) if weights == "refit" else {}
    folder = options.cache or _cache()
    with reported(name, graph, "open"), torch.cuda.device(device):
        chip = Chip(gpu.name, gpu.capability, f"{name} {runtime.__version__}")
        log = _log(runtime)
        opener = runtime.Runtime(log)
        build = partial(
            build_engine,
            graph,
            shapes=shapes,
            name=name,
            timings=folder / f"{MODULES[name]}-{runtime.__version__}-{gpu.capability}.timings",
            refitted=[place.name for place in refitted.values()],
        )
        key = graph_key(graph, signature, shapes, [place.name for place in refitted.values()])
        engine: Any = found_or_built(folder, key, chip, build, opener.deserialize_cuda_engine)
        if engine is None:
            raise BackendFailed(f"{name} could not open the engine of {graph}: {log.last}")
        called: Callable[..., Any] = _Engine(torch, runtime, engine, tuple(signature.inputs), signature.outputs)
        inputs = tuple(_spec(engine, runtime, name, axes[name]) for name in signature.inputs)
        outputs = tuple(_spec(engine, runtime, name, engine.get_tensor_shape(name)) for name in signature.outputs)
        renewed: Callable[[], None] = _nothing
        if graphs == "cuda":
            from stillhouse.backends.torch_graphs import Replayed

            called = replayed = Replayed(called)
            renewed = replayed.forget
        changeable = None
        if refitted:
            changeable = EngineWeights(torch, runtime, runtime.Refitter(engine, log), refitted, device, renewed)
    run = partial(_run, torch, called, device)
    read, there = partial(_read, run), partial(_float32, run)
    return GraphRunner(
        graph, name, signature.arithmetic, inputs, outputs, axes, read, weights=changeable, run_there=there
    )


def build_engine(
    graph: Path,
    out: Path,
    *,
    shapes: Mapping[str, Shapes],
    name: str = "tensorrt",
    capability: str | None = None,
    timings: Path | None = None,
    refitted: Sequence[str] = (),
) -> None:
    """Write the engine of a graph.

    Args:
        graph: an ONNX file; weights in files beside it may be of any size.
        out: the engine.
        shapes: of every input.
        name: of the backend.
        capability: of TensorRT for RTX: the compute capability to build for, "8.9"; None, for the GPU that is here.
        timings: a file in which the times of layers are kept, so that the next engine is built sooner.
        refitted: initializers that may be changed in the engine.

    Raises:
        InvalidRequest: a chip that this build knows nothing of.
        RuntimeMissing: TensorRT is not installed.
        BackendFailed: it does not understand the graph, or cannot build it.
    """
    runtime = require(MODULES[name])
    log = _log(runtime)
    builder = runtime.Builder(log)
    network, parser = _parsed(runtime, builder, graph, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(runtime.MemoryPoolType.WORKSPACE, _WORKSPACE)
    if refitted:
        config.set_flag(runtime.BuilderFlag.REFIT_INDIVIDUAL)
    for weights in refitted:
        if not network.mark_weights_refittable(weights):
            raise BackendFailed(f"{name} cannot build {graph} so that {weights} may be changed")
    if hasattr(runtime.BuilderFlag, "TF32"):
        config.clear_flag(runtime.BuilderFlag.TF32)  # float32 is float32
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        one = shapes[tensor.name]
        profile.set_shape(tensor.name, one.least, one.usual, one.most)
    config.add_optimization_profile(profile)
    if capability is not None:
        _build_for(runtime, config, capability)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorRT for RTX deprecates the cache that TensorRT itself needs
        kept = config.create_timing_cache(timings.read_bytes() if timings and timings.is_file() else b"")
        if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):  # of another build, or cut short
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        made = builder.build_serialized_network(network, config)
        taken = config.get_timing_cache().serialize()
    if made is None:
        raise BackendFailed(f"{name} could not build {graph}: {log.last}")
    out.write_bytes(made)
    if timings:
        temporary = timings.with_name(f".{timings.name}.{os.getpid()}")
        temporary.write_bytes(taken)
        temporary.replace(timings)
    del parser  # it owns the weights until here


def arrays(settings: Mapping[str, str], name: str = "tensorrt") -> Any:
    """Torch's tensors on the GPU of these settings, see `torch_arrays`.

    Raises:
        RuntimeMissing, InvalidRequest: torch or the GPU is not here.
    """
    *_, device = _settings(settings)
    _gpu(name, device)
    imported()
    from stillhouse.backends.torch_arrays import arrays_on  # here and not above, because that file imports torch

    return arrays_on(f"{CUDA}:{index_of(device)}")


def status(name: str = "tensorrt") -> BackendStatus:
    """What TensorRT can do on this machine. It is not imported for that.

    Raises:
        RuntimeMissing: it is not installed.
    """
    if find_spec(MODULES[name]) is None:
        raise RuntimeMissing("not installed", fix=INSTALL[name])
    devices = tuple(f"cuda:{index}" for index in range(len(gpus())))
    reason = None if devices else f"there is no GPU: {no_gpu()}"
    return BackendStatus(name, version(name), devices, (_AS_WRITTEN,) if devices else (), reason, INSTALL[name])


def _settings(given: Mapping[str, str]) -> tuple[tuple[int, int] | None, str, str, str]:
    """Rows, graphs, weights, and the device."""
    for name, value in given.items():
        check_choice("setting of tensorrt", name, (*SETTINGS, "device", "rows"))
        if name in SETTINGS:
            check_choice(name, value, SETTINGS[name])
    rows = None
    if "rows" in given:
        told = _ROWS.fullmatch(given["rows"])
        if not told or not 1 <= int(told[1]) <= int(told[2]):
            raise InvalidRequest(f"rows is {given['rows']!r}", allowed="the least and the most: 1-8")
        rows = int(told[1]), int(told[2])
        if given.get("graphs", "none") != "none":  # each graph would need a context of the engine's of its own
            raise InvalidRequest("graphs of an engine for several numbers of rows", allowed="graphs, or rows")
    device = given.get("device", CUDA)
    if kind_of(device) != CUDA:
        raise InvalidRequest(f"device is {device!r}", allowed="cuda, cuda:1")
    return rows, given.get("graphs", "none"), given.get("weights", "fixed"), device


def _refitted(graph: Path) -> Mapping[str, Place]:
    found = places(graph)
    if not found:
        raise InvalidRequest(
            f"weights is 'refit' of {graph}, whose weights are no floats, or not called by the names of layers",
            allowed="graphs that `stillhouse import` makes, in f32 or f16",
        )
    return found


def _nothing() -> None:
    pass


def _gpu(name: str, device: str) -> Gpu:
    if not gpus():
        raise RuntimeMissing(f"{name} needs a GPU: {no_gpu()}")
    if wrong := check_index(device, gpus()):
        raise InvalidRequest(wrong)
    return gpus()[index_of(device)]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse" / "engines"


def _log(runtime: Any) -> Any:
    """Keeps the last complaint, and shows none: each comes back as an error."""

    class Log(runtime.ILogger):  # type: ignore[misc]
        last = "it does not say why"

        def __init__(self) -> None:
            runtime.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (runtime.ILogger.ERROR, runtime.ILogger.INTERNAL_ERROR):
                self.last = message

    return Log()


def _parsed(runtime: Any, builder: Any, graph: Path, log: Any) -> tuple[Any, Any]:
    strongly = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = runtime.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        told = _complaint(parser.get_error(0)) if parser.num_errors else log.last
        raise BackendFailed(f"{graph} is not understood: {told}", fix="see the operators that TensorRT knows")
    return network, parser


def _complaint(error: Any) -> str:
    node = " ".join(filter(None, (error.node_operator(), error.node_name())))
    return f"{node}: {error.desc()}" if node else str(error.desc())


def _build_for(runtime: Any, config: Any, capability: str) -> None:
    known = getattr(runtime, "ComputeCapability", None)
    names = [] if known is None else [name for name in dir(known) if name.startswith("SM")]
    wanted = f"SM{capability.replace('.', '')}"
    if wanted not in names:
        allowed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in names) or "the GPU that is here"
        raise InvalidRequest(f"compute capability {capability}", allowed=allowed)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, wanted), 0)


class _Engine:
    """An engine as a module: tensors by position in, tensors out, on torch's current stream."""

    def __init__(
        self, torch: Any, runtime: Any, engine: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        self._torch, self._engine, self._inputs, self._outputs = torch, engine, inputs, outputs
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendFailed("there is too little GPU memory for the engine's activations")
        self._dtypes = {name: getattr(torch, _dtype(engine, runtime, name)) for name in (*inputs, *outputs)}

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        given = [tensor.to(self._dtypes[n]).contiguous() for n, tensor in zip(self._inputs, inputs, strict=True)]
        for name, tensor in zip(self._inputs, given, strict=True):
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self._outputs:
            shape: Shape = tuple(self._context.get_tensor_shape(name))
            outputs.append(self._torch.empty(shape, dtype=self._dtypes[name], device=given[0].device))
            self._context.set_tensor_address(name, outputs[-1].data_ptr())
        if not self._context.execute_async_v3(self._torch.cuda.current_stream().cuda_stream):
            raise BackendFailed("the engine could not be run")
        return tuple(outputs)


def _run(torch: Any, called: Callable[..., Any], device: str, feeds: Mapping[str, Any]) -> Sequence[Any]:
    """What the engine answers, where it lies."""
    with torch.inference_mode(), torch.cuda.device(device):
        tensors = (one if isinstance(one, torch.Tensor) else torch.tensor(one) for one in feeds.values())
        return tuple(called(*(tensor.cuda() for tensor in tensors)))


def _read(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Tensors) -> list[NDArray[Any]]:
    return [output.cpu().numpy() for output in run(feeds)]


def _float32(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Mapping[str, Any]) -> list[Any]:
    """As a walk adds it up, whatever the engine's own outputs are."""
    return [output.float() for output in run(feeds)]


def _dtype(engine: Any, runtime: Any, name: str) -> str:
    kind = engine.get_tensor_dtype(name)
    told = next((dtype for known, dtype in _DTYPES.items() if kind == getattr(runtime.DataType, known)), None)
    if told is None:
        raise BackendFailed(f"tensor {name!r} is of {kind}, which numpy has no type for")
    return told


def _spec(engine: Any, runtime: Any, name: str, axes: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in axes)
    return TensorSpec(name, _dtype(engine, runtime, name), shape)
