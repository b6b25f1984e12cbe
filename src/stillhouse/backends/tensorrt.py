"""The TensorRT backend: an ONNX graph is built into an engine for one GPU. TensorRT for RTX uses the same code.

Networks are strongly typed: the graph holds the precision of each operation, and the modules `precision` and `quantize`
make graphs in other precisions. TensorRT 11 cannot choose precisions itself. TensorRT for RTX can build an engine
without a GPU, but needs a GPU to run it.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.backend import Backend, CompileScope, Settings
from stillhouse.backends.recipes import FLOAT16, static_recipe
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors
from stillhouse.backends.runtime import OUT_OF_MEMORY_FIX, BackendStatus, install_command, require, translate_errors
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
from stillhouse.backends.tensorrt_candidates import candidates, exclusion, rtx_candidates
from stillhouse.backends.tensorrt_weights import EngineWeights, RefittableWeight, find_refittable
from stillhouse.backends.torch_device import CUDA, GPU_LOCK, device_kind, import_torch
from stillhouse.cache_directory import cache_path
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu, device_error, device_index, find_gpus, no_gpu_reason

MODULES: Mapping[str, str] = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})
"""Python module of each backend of this file."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "graphs": ("none", "cuda"),
    "weights": ("fixed", "refit"),
    "batches": ("apart", "together"),
}
"""Allowed values of each setting; the first is the default. Two settings are not listed: `device` (cuda, cuda:1), and
`axes`, ranges of lengths of the graph's named axes (rows=1-8,height=32-64)."""

_AS_WRITTEN = "auto"
_RANGE = re.compile(r"\s*([^=,]+)=(\d+)-(\d+)\s*")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}
_WORKSPACE = 4 << 30
"""Largest number of bytes of scratch memory of a layer."""


def open_graph(graph: Path, signature: Signature, options: RunnerOptions, name: str = "tensorrt") -> GraphRunner:
    """Open an ONNX file on a GPU. Where no engine is stored, one is built, which takes minutes.

    The only precision is auto: operations compute in the precisions that the graph holds. Engines are stored in
    `options.cache`, or in `$XDG_CACHE_HOME/stillhouse/engines`. Where the stored engine is for another GPU or version,
    a new one is built, with a warning.

    Args:
        graph: path of the ONNX file.
        signature: inputs, outputs and weights files of the graph.
        options: precision, static shapes, batch sizes, cache, and settings of the backend.
        name: name of the backend, tensorrt or tensorrt-rtx.

    Settings:
        device: the GPU, cuda or cuda:1; by default the first.
        axes: ranges of lengths of named axes, rows=1-8,height=32-64. An engine is fastest at the lengths of
            `options.shapes`. Without ranges, an engine has static shapes.
        batches: apart, or together: one engine, with one copy of the weights, for all sizes of `options.batch_sizes`.
            At each size the engine is as fast as a static one. For n sizes, building takes n times as long.
        graphs: none, or cuda: a CUDA graph launches all kernels of a call at once, see `torch_graphs`.
        weights: fixed, or refit: adapters can change the weights of the engine. The engine may be slower than with
            fixed weights, since TensorRT folds fixed weights.

    Raises:
        InvalidRequest: an unknown setting, settings that exclude each other, a GPU that the machine does not have, an
            OpenVINO graph, an input with open axes and no shape, or no weights that can be refitted.
        RuntimeMissing: TensorRT is not installed, or torch, which allocates memory for it; or there is no GPU.
        UnsupportedPrecision: a precision other than auto. For a graph that computes in f32, f32 is accepted too.
        BackendFailed: TensorRT refuses the graph.
    """
    if graph.suffix == OPENVINO_SUFFIX:
        raise InvalidRequest(f"{graph} is an OpenVINO graph", allowed="an ONNX file", fix="open it on openvino")
    if options.precision not in (_AS_WRITTEN, signature.arithmetic):
        message = f"precision {options.precision!r} was requested for a graph that computes in {signature.arithmetic}"
        raise UnsupportedPrecision(
            message, allowed=_AS_WRITTEN, fix="convert the graph with the recipe f16 or int8-static"
        )
    settings = _settings(options.settings)
    device = settings.device
    profiles: list[dict[str, ShapeRange]] = [shape_ranges(signature, options.shapes, settings.ranges)]
    if settings.batches == "together":
        if not options.batch_sizes:
            raise InvalidRequest(
                "batches is 'together', but `options.batch_sizes` is empty", allowed="the batch sizes to build for"
            )
        profiles = batch_profiles(signature, options.shapes, options.batch_sizes)
    axes = _axes(signature, profiles)
    runtime = require(MODULES[name])
    gpu = _gpu(name, device)
    torch = import_torch()
    refittable = _require_refittable(graph) if settings.weights == "refit" else {}
    refittable_names = [weight.name for weight in refittable.values()]
    folder = options.cache or cache_path("engines")
    with translate_errors(name, graph, "open"), torch.cuda.device(device):
        target = EngineTarget(gpu.name, gpu.capability, f"{name} {runtime.__version__}")
        log = _make_logger(runtime)
        opener = runtime.Runtime(log)
        build = partial(
            build_engine,
            graph,
            profiles=profiles,
            name=name,
            timings=folder / f"{MODULES[name]}-{runtime.__version__}-{gpu.capability}.timings",
            refittable=refittable_names,
        )
        key = graph_key(graph, signature, profiles, refittable_names)
        with GPU_LOCK:
            engine: Any = load_or_build(folder, key, target, build, opener.deserialize_cuda_engine)
        if engine is None:
            raise BackendFailed(f"{name} could not open the engine of {graph}: {log.last}")
        callee: Callable[..., Any] = TensorRTEngine(
            torch, runtime, engine, tuple(signature.inputs), signature.outputs, profiles
        )
        inputs = tuple(_spec(engine, runtime, name, axes[name]) for name in signature.inputs)
        outputs = tuple(_spec(engine, runtime, name, engine.get_tensor_shape(name)) for name in signature.outputs)
        on_refit: Callable[[], None] = _do_nothing
        if settings.graphs == "cuda":
            from stillhouse.backends.torch_graphs import CudaGraphModule

            callee = graphs = CudaGraphModule(callee)
            on_refit = graphs.reset
        weights = None
        if refittable:
            weights = EngineWeights(torch, runtime, runtime.Refitter(engine, log), refittable, device, on_refit)
    run = partial(_run, torch, callee, device)
    to_numpy, on_device = partial(_run_to_numpy, run), partial(_run_to_float32, run)
    return GraphRunner(
        graph, name, signature.arithmetic, inputs, outputs, axes, to_numpy, weights=weights, device_run=on_device
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
    """Build the engine of a graph and write it to a file.

    Args:
        graph: an ONNX file; weights in files beside it may have any size.
        out: file of the engine.
        profiles: shape ranges of all inputs; the engine is optimised for each profile.
        name: name of the backend.
        capability: compute capability to build for, such as "8.9", with TensorRT for RTX; None: this machine's GPU.
        timings: file of the times of layers that TensorRT measured, read and written, which makes the next build
            faster; None: no file.
        refittable: names of the initializers that a refit of the engine can change.

    Raises:
        InvalidRequest: this version of TensorRT cannot build for the compute capability.
        RuntimeMissing: TensorRT is not installed.
        BackendFailed: TensorRT does not accept the graph, or cannot build it.
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
            raise BackendFailed(
                f"{name} cannot make {weights} of {graph} refittable", fix="use the setting weights=fixed"
            )
    if hasattr(runtime.BuilderFlag, "TF32"):
        config.clear_flag(runtime.BuilderFlag.TF32)  # f32 must be full float32, as on the other backends
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = shapes[tensor.name]
            profile.set_shape(tensor.name, shape.minimum, shape.optimum, shape.maximum)
        config.add_optimization_profile(profile)
    if capability is not None:
        _set_capability(runtime, config, capability)
    with warnings.catch_warnings():
        # TensorRT for RTX warns that timing caches are deprecated. The warning is ignored, since plain TensorRT needs
        # timing caches.
        warnings.simplefilter("ignore")
        cache = config.create_timing_cache(timings.read_bytes() if timings and timings.is_file() else b"")
        # TensorRT refuses a stored cache that another build of TensorRT wrote, or that is cut short. An empty cache is
        # used instead.
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        measured = config.get_timing_cache().serialize()
    if engine is None:
        raise BackendFailed(f"{name} could not build {graph}: {log.last}")
    out.write_bytes(engine)
    if timings:
        temporary = timings.with_name(f".{timings.name}.{os.getpid()}")
        temporary.write_bytes(measured)
        temporary.replace(timings)
    del parser  # not earlier, since the parser owns the weights of the network


def tensorrt_device_arrays(settings: Mapping[str, str], name: str = "tensorrt") -> Any:
    """Return the operations on tensors (`torch_arrays.TorchArrays`) on the GPU that these settings name.

    `name` is the backend, for the error message.

    Raises:
        RuntimeMissing, InvalidRequest: torch is not installed, or the machine lacks the GPU.
    """
    device = _settings(settings).device
    _gpu(name, device)
    import_torch()
    from stillhouse.backends.torch_arrays import arrays_for_device  # not at the top, since torch_arrays imports torch

    return arrays_for_device(f"{CUDA}:{device_index(device)}")


def status(name: str = "tensorrt") -> BackendStatus:
    """Return the version, GPUs and precisions of TensorRT on this machine, without importing TensorRT.

    Raises:
        RuntimeMissing: TensorRT is not installed.
    """
    if find_spec(MODULES[name]) is None:
        raise RuntimeMissing(f"the package {name} is not installed", fix=install_command(name))
    devices = tuple(f"cuda:{index}" for index in range(len(find_gpus())))
    reason = None if devices else f"there is no GPU: {no_gpu_reason()}"
    return BackendStatus(name, version(name), devices, (_AS_WRITTEN,) if devices else (), reason, install_command(name))


@dataclass(frozen=True, slots=True)
class _TensorRTSettings:
    """Settings of `open_graph`, with defaults filled in; `ranges` has the lengths (minimum, maximum) of named axes."""

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
    # With axes, each shape would need a CUDA graph and a context of its own, and batches have a range already.
    for name in ("graphs", "batches"):
        if ranges and chosen[name] != SETTINGS[name][0]:
            problem = f"{name} is {chosen[name]!r}, but axes lets lengths of inputs change"
            raise InvalidRequest(problem, allowed=f"only one of the settings {name} and axes")
    device = settings.get("device", CUDA)
    if device_kind(device) != CUDA:
        raise InvalidRequest(f"device is {device!r}", allowed="cuda, cuda:1 (the GPU with index 1) and so on")
    return _TensorRTSettings(**chosen, device=device, ranges=ranges)


def _parse_ranges(text: str) -> dict[str, tuple[int, int]]:
    matches = [_RANGE.fullmatch(part) for part in text.split(",")]
    ranges = {match[1].strip(): (int(match[2]), int(match[3])) for match in matches if match}
    if len(ranges) < len(matches) or not all(1 <= minimum <= maximum for minimum, maximum in ranges.values()):
        raise InvalidRequest(f"axes is {text!r}", allowed="minimum and maximum of each axis: rows=1-8,height=32-64")
    return ranges


def _axes(signature: Signature, profiles: Sequence[Profile]) -> dict[str, Axes]:
    """Return the axes of all inputs of an engine, by name of the input.

    Where all profiles (shape ranges) give an axis one and the same length, the result has this length. Otherwise the
    result has the axis of the graph, such as its name.
    """

    def length(name: str, place: int) -> int | None:
        ranges = [profile[name] for profile in profiles]
        lengths = {bound[place] for shapes in ranges for bound in (shapes.minimum, shapes.maximum)}
        return lengths.pop() if len(lengths) == 1 else None

    return {
        name: tuple(length(name, place) or axis for place, axis in enumerate(axes))
        for name, axes in signature.inputs.items()
    }


def _require_refittable(graph: Path) -> Mapping[str, RefittableWeight]:
    weights = find_refittable(graph)
    if not weights:
        raise InvalidRequest(
            f"weights is 'refit' for {graph}, whose weights are not floats, or lack the names of layers",
            allowed="graphs that `stillhouse import` makes, in f32 or f16",
        )
    return weights


def _do_nothing() -> None:
    pass


def _gpu(name: str, device: str) -> Gpu:
    if not find_gpus():
        raise RuntimeMissing(f"{name} needs a GPU: {no_gpu_reason()}")
    if error := device_error(device, find_gpus()):
        raise InvalidRequest(error)
    return find_gpus()[device_index(device)]


def _make_logger(runtime: Any) -> Any:
    """Return a TensorRT logger that stores the last error message and prints nothing."""

    class Log(runtime.ILogger):  # type: ignore[misc]
        last = "it gives no reason"

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
        message = _parser_error(parser.get_error(0)) if parser.num_errors else log.last
        raise BackendFailed(
            f"TensorRT cannot parse {graph}: {message}", fix="look whether TensorRT supports the operator"
        )
    return network, parser


def _parser_error(error: Any) -> str:
    node = " ".join(filter(None, (error.node_operator(), error.node_name())))
    return f"{node}: {error.desc()}" if node else str(error.desc())


def _set_capability(runtime: Any, config: Any, capability: str) -> None:
    capabilities = getattr(runtime, "ComputeCapability", None)
    names = [] if capabilities is None else [name for name in dir(capabilities) if name.startswith("SM")]
    target = f"SM{capability.replace('.', '')}"
    if target not in names:
        allowed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in names) or "the GPU of this machine"
        raise InvalidRequest(f"no engine can be built here for compute capability {capability}", allowed=allowed)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(capabilities, target), 0)


class TensorRTEngine:
    """A TensorRT engine, callable with input tensors by position. The engine runs on torch's current stream.

    Args:
        torch, runtime: the modules of torch and TensorRT.
        engine: TensorRT's engine object.
        inputs, outputs: names of the inputs and outputs, in the order of the tensors.
        profiles: shape ranges of the inputs for which the engine was built.

    Raises:
        BackendFailed: the GPU has too little memory.
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
        """Run the engine on input tensors on the GPU, and return the output tensors in order.

        Raises:
            BackendFailed: the engine was not built for these shapes, or failed.
        """
        tensors = [tensor.to(self._dtypes[n]).contiguous() for n, tensor in zip(self._inputs, inputs, strict=True)]
        context = self._context(self._profile([tuple(tensor.shape) for tensor in tensors]))
        for name, tensor in zip(self._inputs, tensors, strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self._outputs:
            shape: Shape = tuple(context.get_tensor_shape(name))
            outputs.append(self._torch.empty(shape, dtype=self._dtypes[name], device=tensors[0].device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        if not context.execute_async_v3(self._stream()):
            raise BackendFailed("the engine failed to run", fix="run the graph on another backend")
        return tuple(outputs)

    def _profile(self, shapes: Sequence[Shape]) -> int:
        """Return the index of the first profile whose ranges contain these shapes of the inputs.

        Raises:
            BackendFailed: no profile contains the shapes.
        """
        for index, profile in enumerate(self._profiles):
            if all(profile[name].contains(shape) for name, shape in zip(self._inputs, shapes, strict=True)):
                return index
        raise BackendFailed(
            f"the engine was not built for inputs of shapes {', '.join(map(str, shapes))}",
            fix="open the graph with these shapes",
        )

    def _context(self, profile: int) -> Any:
        """Return TensorRT's execution context of the optimization profile with this index; create it on first use.

        Each profile has its own context, so that a CUDA graph of one profile stays valid while another profile runs.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._create_context(profile)
        return self._contexts[profile]

    def _create_context(self, profile: int) -> Any:
        is_one = len(self._profiles) == 1
        # STATIC would reserve the memory of the largest profile for every context, so STATIC is used only for a single
        # profile.
        memory = self._memory.STATIC if is_one else self._memory.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(memory)
        if context is None:
            raise BackendFailed("there is too little GPU memory for the engine's activations", fix=OUT_OF_MEMORY_FIX)
        if not is_one and not context.set_optimization_profile_async(profile, self._stream()):
            raise BackendFailed(
                f"the engine cannot select its profile {profile}, or there is too little GPU memory",
                fix=OUT_OF_MEMORY_FIX,
            )
        return context

    def _stream(self) -> int:
        stream: int = self._torch.cuda.current_stream().cuda_stream
        return stream


def _run(torch: Any, callee: Callable[..., Any], device: str, feeds: Mapping[str, Any]) -> Sequence[Any]:
    """Run an engine on input arrays and return its outputs on the GPU, in order.

    Args:
        torch: the module torch.
        callee: the engine, or a CUDA graph of the engine; takes tensors on the GPU by position.
        device: name of the GPU.
        feeds: input arrays (NumPy or torch) in the engine's order; copied to the GPU where needed.
    """
    with GPU_LOCK, torch.inference_mode(), torch.cuda.device(device):
        tensors = (feed if isinstance(feed, torch.Tensor) else torch.tensor(feed) for feed in feeds.values())
        return tuple(callee(*(tensor.cuda() for tensor in tensors)))


def _run_to_numpy(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Tensors) -> list[NDArray[Any]]:
    return [output.cpu().numpy() for output in run(feeds)]


def _run_to_float32(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Mapping[str, Any]) -> list[Any]:
    """Call `run` with input arrays by name, and return its outputs on the GPU, converted to float32 for samplers."""
    return [output.float() for output in run(feeds)]


def _dtype(engine: Any, runtime: Any, name: str) -> str:
    kind = engine.get_tensor_dtype(name)
    dtype = next((dtype for member, dtype in _DTYPES.items() if kind == getattr(runtime.DataType, member)), None)
    if dtype is None:
        raise BackendFailed(
            f"tensor {name!r} is of {kind}, which NumPy has no type for", fix="export the graph with another type"
        )
    return dtype


def _spec(engine: Any, runtime: Any, name: str, axes: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in axes)
    return TensorSpec(name, _dtype(engine, runtime, name), shape)


def _compiles_per(settings: Settings) -> CompileScope:
    return "batch" if settings.get("batches") == "together" else "shape"


BACKEND = Backend(
    "tensorrt",
    open_graph,
    status,
    install_command("tensorrt"),
    settings=SETTINGS,
    device_arrays=tensorrt_device_arrays,
    compiles_per=_compiles_per,
    batch_settings={"batches": "together"},
    adapter_settings={"weights": "refit"},
    packages=("tensorrt",),
    recipes={"f16": FLOAT16, "int8-static": static_recipe("int8"), "fp8-static": static_recipe("fp8")},
    candidates=candidates,
    exclusion=exclusion,
)
RTX_BACKEND = replace(
    BACKEND,
    name="tensorrt-rtx",
    open_graph=partial(open_graph, name="tensorrt-rtx"),
    status=partial(status, "tensorrt-rtx"),
    install=install_command("tensorrt-rtx"),
    device_arrays=partial(tensorrt_device_arrays, name="tensorrt-rtx"),
    packages=("tensorrt-rtx",),
    candidates=rtx_candidates,
)
