"""The TensorRT backend: an ONNX graph becomes an engine for one GPU. TensorRT for RTX is driven by the same code.

Networks are strongly typed: what is computed in which precision stands in the graph, where `precision` and `quantize`
put it, and TensorRT 11 knows nothing else. Building needs no GPU for TensorRT for RTX; running does.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors
from stillhouse.backends.runtime import INSTALL_COMMANDS, OUT_OF_MEMORY_FIX, BackendStatus, require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX, Axes, Signature
from stillhouse.backends.tensorrt_cache import (
    EngineTarget,
    Profile,
    Shape,
    ShapeRange,
    batch_profiles,
    graph_key,
    load_or_build,
    shape_ranges,
)
from stillhouse.backends.tensorrt_weights import EngineWeights, RefittableWeight, find_refittable
from stillhouse.backends.torch_device import CUDA, GPU_LOCK, device_kind, import_torch
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu, device_error, device_index, find_gpus, no_gpu_reason

MODULES: Mapping[str, str] = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})
"""The Python module of each backend of this file."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "graphs": ("none", "cuda"),
    "weights": ("fixed", "refit"),
    "batches": ("apart", "together"),
}
"""Allowed values by name; the first is the default. Beside these there are `device`: cuda, cuda:1, and `axes`, the
lengths that the graph's named axes may have: rows=1-8, height=32-64."""

_AS_WRITTEN = "auto"
_RANGE = re.compile(r"\s*([^=,]+)=(\d+)-(\d+)\s*")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}
_WORKSPACE = 4 << 30
"""Bytes that a layer may take while it computes, at most."""


def open_graph(graph: Path, signature: Signature, options: RunnerOptions, name: str = "tensorrt") -> GraphRunner:
    """Open an ONNX file on a GPU; its engine is built where there is none, which takes minutes.

    There is one precision, auto: what the graph says. Engines are kept in `options.cache`, or else in
    `$XDG_CACHE_HOME/stillhouse/engines`; one for another chip, version or graph is built anew, with a warning.

    Settings:
        device: cuda, cuda:1: which GPU; without it, the first.
        axes: rows=1-8, height=32-64: these may have any length from the one to the other; an engine is fastest at that
            of `options.shapes`. Without it, an engine is static.
        batches: together: the first axis may have each length of `options.rows`, and the engine is as fast at each as
            a static one, over one copy of the weights. Building takes as many times as long.
        graphs: cuda: all launches of an evaluation at once, see `torch_graphs`.
        weights: refit: adapters may change them, and the engine stays. It may be slower than one whose weights are
            fixed, which TensorRT folds.

    Raises:
        InvalidRequest: an unknown setting, or two that exclude each other; a GPU that is not there, a graph of
            OpenVINO's, an input with open axes and no shape, or nothing to refit.
        RuntimeMissing: TensorRT or torch, which holds its memory, is not installed, or there is no GPU.
        UnsupportedPrecision: anything but auto and f32 of a graph that computes in f32.
        BackendFailed: TensorRT refuses the graph.
    """
    if graph.suffix == OPENVINO_SUFFIX:
        raise InvalidRequest(f"{graph} is a graph of OpenVINO's", allowed="an ONNX file", fix="open it on openvino")
    if options.precision not in (_AS_WRITTEN, signature.arithmetic):
        given = f"precision {options.precision!r} of a graph that computes in {signature.arithmetic}"
        raise UnsupportedPrecision(given, allowed=_AS_WRITTEN, fix="make a graph in that precision")
    asked = _settings(options.settings)
    device = asked.device
    profiles: list[dict[str, ShapeRange]] = [shape_ranges(signature, options.shapes, asked.ranges)]
    if asked.batches == "together":
        if not options.batch_sizes:
            raise InvalidRequest("batches 'together' of no sizes", allowed="the sizes, as `rows` of the options")
        profiles = batch_profiles(signature, options.shapes, options.batch_sizes)
    axes = _axes(signature, profiles)
    runtime = require(MODULES[name])
    gpu = _gpu(name, device)
    torch = import_torch()
    refitted = _require_refittable(graph) if asked.weights == "refit" else {}
    folder = options.cache or _cache_folder()
    with translate_errors(name, graph, "open"), torch.cuda.device(device):
        chip = EngineTarget(gpu.name, gpu.capability, f"{name} {runtime.__version__}")
        log = _make_logger(runtime)
        opener = runtime.Runtime(log)
        build = partial(
            build_engine,
            graph,
            profiles=profiles,
            name=name,
            timings=folder / f"{MODULES[name]}-{runtime.__version__}-{gpu.capability}.timings",
            refittable=[place.name for place in refitted.values()],
        )
        key = graph_key(graph, signature, profiles, [place.name for place in refitted.values()])
        with GPU_LOCK:
            engine: Any = load_or_build(folder, key, chip, build, opener.deserialize_cuda_engine)
        if engine is None:
            raise BackendFailed(f"{name} could not open the engine of {graph}: {log.last}")
        called: Callable[..., Any] = TensorRTEngine(
            torch, runtime, engine, tuple(signature.inputs), signature.outputs, profiles
        )
        inputs = tuple(_spec(engine, runtime, name, axes[name]) for name in signature.inputs)
        outputs = tuple(_spec(engine, runtime, name, engine.get_tensor_shape(name)) for name in signature.outputs)
        renewed: Callable[[], None] = _do_nothing
        if asked.graphs == "cuda":
            from stillhouse.backends.torch_graphs import CudaGraphModule

            called = replayed = CudaGraphModule(called)
            renewed = replayed.reset
        changeable = None
        if refitted:
            changeable = EngineWeights(torch, runtime, runtime.Refitter(engine, log), refitted, device, renewed)
    run = partial(_run, torch, called, device)
    read, there = partial(_run_to_numpy, run), partial(_run_to_float32, run)
    return GraphRunner(
        graph, name, signature.arithmetic, inputs, outputs, axes, read, weights=changeable, device_run=there
    )


def build_engine(
    graph: Path,
    out: Path,
    *,
    profiles: Sequence[Profile],
    name: str = "tensorrt",
    capability: str | None = None,
    timings: Path | None = None,
    refittable: Sequence[str] = (),
) -> None:
    """Write the engine of a graph.

    Args:
        graph: an ONNX file; weights in files beside it may be of any size.
        out: the engine.
        profiles: shapes of every input, and once more for each further shape that the engine is to be as fast at.
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
    log = _make_logger(runtime)
    builder = runtime.Builder(log)
    network, parser = _parse_graph(runtime, builder, graph, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(runtime.MemoryPoolType.WORKSPACE, _WORKSPACE)
    if refittable:
        config.set_flag(runtime.BuilderFlag.REFIT_INDIVIDUAL)
    for weights in refittable:
        if not network.mark_weights_refittable(weights):
            raise BackendFailed(f"{name} cannot build {graph} so that {weights} may be changed")
    if hasattr(runtime.BuilderFlag, "TF32"):
        config.clear_flag(runtime.BuilderFlag.TF32)  # float32 is float32
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            one = shapes[tensor.name]
            profile.set_shape(tensor.name, one.minimum, one.optimum, one.maximum)
        config.add_optimization_profile(profile)
    if capability is not None:
        _set_capability(runtime, config, capability)
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


def tensorrt_device_arrays(settings: Mapping[str, str], name: str = "tensorrt") -> Any:
    """Torch's tensors on the GPU of these settings, see `torch_arrays`.

    Raises:
        RuntimeMissing, InvalidRequest: torch or the GPU is not here.
    """
    device = _settings(settings).device
    _gpu(name, device)
    import_torch()
    from stillhouse.backends.torch_arrays import (
        arrays_for_device,  # here and not above, because that file imports torch
    )

    return arrays_for_device(f"{CUDA}:{device_index(device)}")


def status(name: str = "tensorrt") -> BackendStatus:
    """What TensorRT can do on this machine. It is not imported for that.

    Raises:
        RuntimeMissing: it is not installed.
    """
    if find_spec(MODULES[name]) is None:
        raise RuntimeMissing("not installed", fix=INSTALL_COMMANDS[name])
    devices = tuple(f"cuda:{index}" for index in range(len(find_gpus())))
    reason = None if devices else f"there is no GPU: {no_gpu_reason()}"
    return BackendStatus(
        name, version(name), devices, (_AS_WRITTEN,) if devices else (), reason, INSTALL_COMMANDS[name]
    )


@dataclass(frozen=True, slots=True)
class _TensorRTSettings:
    """See `open_graph`."""

    graphs: str
    weights: str
    batches: str
    device: str
    ranges: Mapping[str, tuple[int, int]]


def _settings(settings: Mapping[str, str]) -> _TensorRTSettings:
    for name, value in settings.items():
        check_choice("setting of tensorrt", name, (*SETTINGS, "device", "axes"))
        if name in SETTINGS:
            check_choice(name, value, SETTINGS[name])
    chosen = {name: settings.get(name, allowed[0]) for name, allowed in SETTINGS.items()}
    ranges = _parse_ranges(settings["axes"]) if "axes" in settings else {}
    if ranges and chosen["graphs"] != "none":  # each graph would need a context of the engine's of its own
        raise InvalidRequest("graphs of an engine whose axes may change", allowed="graphs, or axes")
    if ranges and chosen["batches"] != "apart":
        raise InvalidRequest("batches 'together' in an engine whose axes may change", allowed="batches, or axes")
    device = settings.get("device", CUDA)
    if device_kind(device) != CUDA:
        raise InvalidRequest(f"device is {device!r}", allowed="cuda, cuda:1")
    return _TensorRTSettings(**chosen, device=device, ranges=ranges)


def _parse_ranges(text: str) -> dict[str, tuple[int, int]]:
    matches = [_RANGE.fullmatch(one) for one in text.split(",")]
    ranges = {one[1].strip(): (int(one[2]), int(one[3])) for one in matches if one}
    if len(ranges) < len(matches) or not all(1 <= least <= most for least, most in ranges.values()):
        raise InvalidRequest(
            f"axes is {text!r}", allowed="for each axis the least and the most: rows=1-8, height=32-64"
        )
    return ranges


def _axes(signature: Signature, profiles: Sequence[Profile]) -> dict[str, Axes]:
    """The graph's axes, fixed where all profiles have one length."""

    def length(name: str, place: int) -> int | None:
        lengths = {end[place] for one in profiles for end in (one[name].minimum, one[name].maximum)}
        return lengths.pop() if len(lengths) == 1 else None

    return {
        name: tuple(length(name, place) or axis for place, axis in enumerate(axes))
        for name, axes in signature.inputs.items()
    }


def _require_refittable(graph: Path) -> Mapping[str, RefittableWeight]:
    found = find_refittable(graph)
    if not found:
        raise InvalidRequest(
            f"weights is 'refit' of {graph}, whose weights are no floats, or not called by the names of layers",
            allowed="graphs that `stillhouse import` makes, in f32 or f16",
        )
    return found


def _do_nothing() -> None:
    pass


def _gpu(name: str, device: str) -> Gpu:
    if not find_gpus():
        raise RuntimeMissing(f"{name} needs a GPU: {no_gpu_reason()}")
    if wrong := device_error(device, find_gpus()):
        raise InvalidRequest(wrong)
    return find_gpus()[device_index(device)]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse" / "engines"


def _make_logger(runtime: Any) -> Any:
    """Keeps the last complaint, and shows none: each comes back as an error."""

    class Log(runtime.ILogger):  # type: ignore[misc]
        last = "it does not say why"

        def __init__(self) -> None:
            runtime.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (runtime.ILogger.ERROR, runtime.ILogger.INTERNAL_ERROR):
                self.last = message

    return Log()


def _parse_graph(runtime: Any, builder: Any, graph: Path, log: Any) -> tuple[Any, Any]:
    strongly = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = runtime.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        told = _parser_error(parser.get_error(0)) if parser.num_errors else log.last
        raise BackendFailed(f"{graph} is not understood: {told}", fix="see the operators that TensorRT knows")
    return network, parser


def _parser_error(error: Any) -> str:
    node = " ".join(filter(None, (error.node_operator(), error.node_name())))
    return f"{node}: {error.desc()}" if node else str(error.desc())


def _set_capability(runtime: Any, config: Any, capability: str) -> None:
    known = getattr(runtime, "ComputeCapability", None)
    names = [] if known is None else [name for name in dir(known) if name.startswith("SM")]
    wanted = f"SM{capability.replace('.', '')}"
    if wanted not in names:
        allowed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in names) or "the GPU that is here"
        raise InvalidRequest(f"compute capability {capability}", allowed=allowed)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, wanted), 0)


class TensorRTEngine:
    """An engine as a module: tensors by position in, tensors out, on torch's current stream.

    Args:
        torch, runtime: the modules.
        engine: TensorRT's, open.
        inputs, outputs: names, in order.
        profiles: that it was built with.

    Raises:
        BackendFailed: there is too little memory.
    """

    def __init__(
        self,
        torch: Any,
        runtime: Any,
        engine: Any,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        profiles: Sequence[Profile],
    ) -> None:
        self._torch, self._engine, self._inputs, self._outputs = torch, engine, inputs, outputs
        self._profiles, self._memory = profiles, runtime.ExecutionContextAllocationStrategy
        self._dtypes = {name: getattr(torch, _dtype(engine, runtime, name)) for name in (*inputs, *outputs)}
        self._contexts: dict[int, Any] = {}
        self._context(0)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """What the engine answers. BackendFailed: it has no profile for these shapes, or gave up."""
        given = [tensor.to(self._dtypes[n]).contiguous() for n, tensor in zip(self._inputs, inputs, strict=True)]
        context = self._context(self._profile([tuple(tensor.shape) for tensor in given]))
        for name, tensor in zip(self._inputs, given, strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self._outputs:
            shape: Shape = tuple(context.get_tensor_shape(name))
            outputs.append(self._torch.empty(shape, dtype=self._dtypes[name], device=given[0].device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        if not context.execute_async_v3(self._stream()):
            raise BackendFailed("the engine could not be run")
        return tuple(outputs)

    def _profile(self, shapes: Sequence[Shape]) -> int:
        """The first that has room for these shapes."""
        for index, profile in enumerate(self._profiles):
            if all(profile[name].contains(shape) for name, shape in zip(self._inputs, shapes, strict=True)):
                return index
        raise BackendFailed(f"the engine was built for no shapes like {', '.join(map(str, shapes))}")

    def _context(self, profile: int) -> Any:
        """Where that profile is run, made when it is first needed. A recording of one goes on while others are run."""
        if profile not in self._contexts:
            is_one = len(self._profiles) == 1
            # By itself, a context would keep as much memory as the largest of all profiles takes.
            context = self._engine.create_execution_context(
                self._memory.STATIC if is_one else self._memory.ON_PROFILE_CHANGE
            )
            if context is None:
                raise BackendFailed(
                    "there is too little GPU memory for the engine's activations", fix=OUT_OF_MEMORY_FIX
                )
            if not is_one and not context.set_optimization_profile_async(profile, self._stream()):
                raise BackendFailed(
                    f"the engine does not take its profile {profile}, or there is too little GPU memory"
                )
            self._contexts[profile] = context
        return self._contexts[profile]

    def _stream(self) -> int:
        stream: int = self._torch.cuda.current_stream().cuda_stream
        return stream


def _run(torch: Any, called: Callable[..., Any], device: str, feeds: Mapping[str, Any]) -> Sequence[Any]:
    """What the engine answers, where it lies."""
    with GPU_LOCK, torch.inference_mode(), torch.cuda.device(device):
        tensors = (one if isinstance(one, torch.Tensor) else torch.tensor(one) for one in feeds.values())
        return tuple(called(*(tensor.cuda() for tensor in tensors)))


def _run_to_numpy(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Tensors) -> list[NDArray[Any]]:
    return [output.cpu().numpy() for output in run(feeds)]


def _run_to_float32(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Mapping[str, Any]) -> list[Any]:
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
