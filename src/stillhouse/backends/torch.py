"""The torch backend: runs the diffusers or transformers network from which a graph was exported, on the CPU or a GPU.

The ONNX file itself is not run; it only says which inputs and outputs the network has. The network is opened from the
config.json and the .safetensors file beside the ONNX file.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature as inspect_signature
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from stillhouse.backends.backend import Backend, Settings
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors, fix_axes
from stillhouse.backends.runtime import BackendStatus, install_command, translate_errors
from stillhouse.backends.signature import Signature
from stillhouse.backends.torch_candidates import candidates, exclusion
from stillhouse.backends.torch_device import (
    CPU,
    CUDA,
    GPU_LOCK,
    cuda_build_version,
    device_kind,
    import_torch,
    place_module,
    resolve_device,
)
from stillhouse.backends.torch_networks import TorchNetwork, find_torch_network, torch_network_names
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import find_gpus

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "attention": ("sdpa", "vanilla", "sliced", "flash", "cudnn", "efficient"),
    "memory_format": ("contiguous", "channels_last"),
    "compile": ("none", "full", "regional"),
    "kernels": ("none", "fused"),
    "qkv": ("apart", "joined"),
    "quantize": ("none", "int8", "fp8"),
    "graphs": ("none", "cuda"),
    "offload": ("none", "cpu"),
}
"""Allowed values of each setting; the first is the default. The setting `device` (cpu, cuda, cuda:1) is not listed."""

_NAME = "torch"
_REQUIRED_PACKAGES = (_NAME, "diffusers", "transformers", "accelerate", "safetensors", "onnx")
_PRECISIONS = {CPU: ("f32", "bf16", "auto"), CUDA: ("f32", "f16", "bf16", "auto")}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""bf16 instructions of x86 and ARM, as torch names them."""
_KERNELS = ("flash", "cudnn", "efficient")
"""Fused attention kernels, see `torch_attention`."""
# torch.compile compiles a block again for each combination of channels and sizes. Above torch's default limit of 8
# combinations, blocks would silently run uncompiled.
_RECOMPILE_LIMIT = 64


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open the network that an ONNX file of a pipeline directory was exported from.

    Precisions on the CPU are f32, bf16 and auto. auto means bf16 where the processor has bf16 instructions, otherwise
    f32, since bf16 is then slower. On a GPU there is also f16, and auto means f16; f32 is never computed in TF32.

    Args:
        graph: path of the ONNX file, which lies beside the network's config.json and weights.
        signature: inputs, outputs and weights files of the graph.
        options: precision, threads, static shapes and settings of the backend.

    Settings:
        device: cpu, or a GPU: cuda, cuda:1.
        attention: sdpa (fused, by the kernel that torch prefers); vanilla (all scores at once); or sliced (half of the
            heads at a time, as in diffusers' `enable_attention_slicing`). For denoisers also flash and, on a GPU, cudnn
            and efficient: fused, by the named kernel, which may refuse a precision or a head size when it runs.
        memory_format: memory format of convolutions: contiguous, or channels_last.
        compile: none, full (the whole network), or regional (each transformer block; of an autoencoder each residual
            block). Compiling happens at the first call and again for other sizes. It takes from seconds to minutes, and
            needs a C++ compiler. With `options.static` or static shapes, torch compiles separate code for each set of
            input shapes, which is faster than code for several.
        kernels: none, or fused: the Triton kernels of `backends.kernels` replace modules of the network. On the CPU
            the replaced modules compute the same in plain torch.
        qkv: apart, or joined: one matrix product computes queries, keys and values of a denoiser's attention.
        quantize: none, int8 or fp8: the linear layers of transformer blocks, by torchao; see `torch_quantize`.
        graphs: none, or cuda: on a GPU, a CUDA graph launches all kernels of a call at once, see `torch_graphs`.
        offload: none, or cpu: on a GPU, weights stay in the processor's memory and are copied layer by layer.

    At every call, `options.threads` sets torch's number of threads for the whole process. Idle threads sleep, unless
    the environment variable OMP_WAIT_POLICY says otherwise or torch was imported before Stillhouse set the variable.

    Raises:
        RuntimeMissing: torch, diffusers or a package that they need is not installed, or torch cannot use CUDA.
        UnsupportedPrecision: a precision that the device does not have.
        InvalidRequest: a setting that is unknown or has no effect on this network, or a GPU that the machine lacks.
        BackendFailed: no network lies beside the graph, torch cannot run the network, or the graph was quantised after
            its export.

    >>> half = RunnerOptions("bf16", settings={"memory_format": "channels_last"})
    >>> denoiser = open_runner(Path("model.onnx"), "torch", half)  # doctest: +SKIP
    >>> denoiser.precision, denoiser.layer_precisions  # doctest: +SKIP
    ('bf16', {'bf16': 147})
    """
    settings = _settings(options.settings)
    kind = device_kind(settings["device"])
    if options.precision not in _PRECISIONS[kind]:
        suffix = "" if kind == CPU else f" with device {kind}"
        message = f"{_NAME} cannot compute in precision {options.precision!r}{suffix}"
        raise UnsupportedPrecision(message, allowed=", ".join(_PRECISIONS[kind]))
    axes = fix_axes(options.shapes, signature.inputs)
    network_class = _network_class(graph, signature)
    if missing := _missing_packages():
        raise RuntimeMissing(f"{_NAME} cannot be used here without {', '.join(missing)}", fix=install_command(_NAME))
    torch = import_torch()
    device = resolve_device(torch, settings["device"])
    precision = options.precision if options.precision != "auto" else _preferred_precision(torch, kind)
    dtype = getattr(torch, _DTYPES[precision])
    with translate_errors(_NAME, graph, "open"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch's compiler causes deprecation warnings
        # These modules import torch, so they are not imported at the top.
        from stillhouse.backends.torch_modules import fuse_projections, load_module, set_attention
        from stillhouse.backends.torch_weights import ModuleWeights

        network = load_module(graph.parent, network_class.library, network_class.name, dtype)
        module = network_class.wrap(network, graph, signature)
        set_attention(module, settings["attention"])
        if settings["qkv"] == "joined":
            fuse_projections(module)
        if settings["attention"] in _KERNELS:
            from stillhouse.backends.torch_attention import set_attention_kernel

            set_attention_kernel(module, settings["attention"])
        _set_memory_format(torch, module, settings["memory_format"])
        if settings["kernels"] == "fused":
            _fuse_kernels(module)
        place_module(module, device, settings["offload"])
        if settings["quantize"] != "none":
            _quantize(module, settings["quantize"], device)
        static = options.static or all(isinstance(axis, int) for shape in axes.values() for axis in shape)
        for part in _modules_to_compile(module, network_class.block, settings["compile"]):
            part.compile(dynamic=False if static else None, **_compile_options(torch))
    layers = _layer_precisions(torch, module, settings["quantize"])
    inputs = tuple(
        _spec(name, "int64" if name in network_class.int64_inputs else "float32", axes[name])
        for name in signature.inputs
    )
    first = [axis if isinstance(axis, int) else None for axis in next(iter(axes.values()))]
    outputs = tuple(
        TensorSpec(name, "float32", network_class.output_shapes[name](first, network.config))
        for name in signature.outputs
    )
    executed = next(iter(layers)) if len(layers) == 1 else "mixed"
    is_channels_last = settings["memory_format"] == "channels_last"
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    callee: Any = module
    if settings["graphs"] == "cuda":
        from stillhouse.backends.torch_graphs import CudaGraphModule

        callee = CudaGraphModule(module)
    # TF32 is switched off for f32, since torch by default computes float32 convolutions in TF32. cuDNN times its
    # algorithms (benchmark) only for CUDA graphs, since the timing takes long and pays only where a captured graph is
    # replayed often.
    flags = {"allow_tf32": precision != "f32", "benchmark": settings["graphs"] == "cuda"} if kind == CUDA else {}
    # Quantised networks run in torch.no_grad, since torchao's weights do not work in torch.inference_mode.
    mode = torch.inference_mode if settings["quantize"] == "none" else torch.no_grad
    dtypes = {name: torch.float32 if name in network_class.float32_inputs else dtype for name in signature.inputs}
    run = partial(_run, torch, mode, callee, device, dtypes, memory_format, options.threads, flags)
    weights = ModuleWeights(network)
    return GraphRunner(graph, _NAME, executed, inputs, outputs, axes, partial(_run_to_numpy, run), layers, weights, run)


def torch_device_arrays(settings: Mapping[str, str]) -> Any:
    """Return the operations on tensors (`torch_arrays.TorchArrays`) on the device that these settings name.

    Raises:
        RuntimeMissing, InvalidRequest: torch is not installed, or the machine lacks the device.
    """
    device = settings.get("device", CPU)
    device_kind(device)
    torch = import_torch()
    from stillhouse.backends.torch_arrays import arrays_for_device  # not at the top, since torch_arrays imports torch

    return arrays_for_device(resolve_device(torch, device))


def status() -> BackendStatus:
    """Return the version, devices and precisions of torch on this machine.

    torch is not imported, since the import takes seconds.

    Raises:
        RuntimeMissing: torch, diffusers or a package that they need is not installed.
    """
    if _NAME in (missing := _missing_packages()):
        raise RuntimeMissing(f"the package {_NAME} is not installed", fix=install_command(_NAME))
    if missing:
        raise RuntimeMissing(f"the backend needs {', '.join(missing)}: {install_command(_NAME)}")
    devices = (CPU, *(f"{CUDA}:{index}" for index in range(len(find_gpus()) if cuda_build_version() else 0)))
    return BackendStatus(_NAME, version(_NAME), devices, _PRECISIONS[CPU], None, install_command(_NAME))


def _missing_packages() -> list[str]:
    return [name for name in _REQUIRED_PACKAGES if find_spec(name) is None]


def _settings(settings: Mapping[str, str]) -> dict[str, str]:
    device = settings.get("device", CPU)
    for name, value in settings.items():
        if name != "device":
            check_choice(f"setting of {_NAME}", name, (*SETTINGS, "device"))
            check_choice(name, value, SETTINGS[name])
    chosen = {name: settings.get(name, allowed[0]) for name, allowed in SETTINGS.items()}
    for name in ("graphs", "offload"):
        if device == CPU and chosen[name] != "none":
            raise InvalidRequest(f"{name} is {chosen[name]!r} with device cpu", allowed="none, or a GPU as the device")
    if device == CPU and chosen["attention"] in ("cudnn", "efficient"):
        raise InvalidRequest(
            f"attention is {chosen['attention']!r} with device cpu",
            allowed="an attention other than cudnn and efficient, or a GPU as the device",
        )
    if "none" not in (chosen["graphs"], chosen["offload"]):
        raise InvalidRequest(
            "graphs cannot be used with offload, which moves the weights",
            allowed="only one of the settings graphs and offload",
        )
    if chosen["offload"] != "none" and chosen["kernels"] != "none":
        raise InvalidRequest(
            "fused kernels, which read the weights, cannot be used with offload",
            allowed="only one of the settings kernels and offload",
        )
    if chosen["offload"] != "none" and chosen["quantize"] != "none":
        raise InvalidRequest(
            "quantize cannot be used with offload", allowed="only one of the settings quantize and offload"
        )
    if chosen["qkv"] == "joined" and chosen["attention"] in ("vanilla", "sliced"):
        raise InvalidRequest(
            f"qkv is 'joined' with attention {chosen['attention']}", allowed=f"sdpa, {', '.join(_KERNELS)}"
        )
    return {**chosen, "device": device}


def _fuse_kernels(module: Any) -> None:
    """Replace modules of a network, in place, by fused Triton kernels.

    Raises:
        RuntimeMissing: triton is not installed.
        InvalidRequest: no module of the network can be replaced.
    """
    if find_spec("triton") is None:
        raise RuntimeMissing("fused kernels need triton, which is not installed", fix=install_command("triton"))
    from stillhouse.backends.kernels.swap import swap_modules

    if not len(swap_modules(module)):
        raise InvalidRequest("kernels is 'fused' in a network that has nothing to fuse", allowed="none")


def _quantize(module: Any, scheme: str, device: str) -> None:
    if find_spec("torchao") is None:
        raise RuntimeMissing("quantize needs torchao, which is not installed", fix=install_command("torchao"))
    from stillhouse.backends.torch_quantize import quantize

    quantize(module, scheme, device)


def _network_class(graph: Path, signature: Signature) -> TorchNetwork:
    """Return the description of the class of the network that lies beside a graph.

    Args:
        graph: an ONNX file; config.json beside the file names the class.
        signature: signature of the graph, which shows whether the graph was changed after its export.

    Raises:
        BackendFailed: there is no network, its class is not known, or the graph was changed after its export.
    """
    file = graph.with_name("config.json")
    if not file.is_file():
        raise _unsupported_graph(f"{graph} has no config.json beside it")
    try:
        config = json.loads(file.read_bytes())
        class_name = str(config.get("_class_name") or config["architectures"][0])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _unsupported_graph(f"{file} names no class of network") from None
    network_class = find_torch_network(class_name)
    if network_class is None:
        raise _unsupported_graph(f"{file} describes a {class_name}, which is not known")
    if signature.arithmetic != "f32" or list(signature.external) != [network_class.weights]:
        raise _unsupported_graph(
            f"{graph} is not as exported: it should compute in float32 with the weights in {network_class.weights}"
        )
    return network_class


def _unsupported_graph(reason: str) -> BackendFailed:
    allowed = f"graphs beside a {', '.join(torch_network_names())}: torch runs diffusers' networks, not ONNX files"
    return BackendFailed(reason, allowed=allowed, fix="open it with onnxruntime or openvino")


def _preferred_precision(torch: Any, device_kind: str) -> str:
    if device_kind == CUDA:
        return "f16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(name) for name in _BF16_INSTRUCTIONS) else "f32"


def _set_memory_format(torch: Any, module: Any, memory_format: str) -> None:
    if memory_format == "channels_last":
        if not any(isinstance(part, torch.nn.Conv2d) for part in module.modules()):
            raise InvalidRequest(
                "memory_format is 'channels_last' in a network without convolutions", allowed="contiguous"
            )
        module.to(memory_format=torch.channels_last)


def _modules_to_compile(module: Any, block: str, mode: str) -> list[Any]:
    """Return the modules of a network that torch compiles, each as a separate unit.

    Args:
        module: the network.
        block: class name of the network's repeated blocks.
        mode: none, full (the network itself) or regional (every repeated block).
    """
    # The names of base classes are compared too, since a block with fused kernels has a class that is derived from the
    # block's original class.
    blocks = [part for part in module.modules() if block in {base.__name__ for base in type(part).__mro__}]
    return {"none": [], "full": [module], "regional": blocks}[mode]


def _layer_precisions(torch: Any, module: Any, quantized: str) -> dict[str, int]:
    """Count a network's convolutions, linear layers and attentions by the type of their weights.

    torch computes in the type of the weights, since it does not mix types. `quantized` is the format of the linear
    layers that torchao has quantised, int8 or fp8; none: no layer.
    """
    kinds = {getattr(torch, dtype): name for name, dtype in _DTYPES.items()}
    heavy = [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear) or type(part).__name__.endswith("Attention")
    ]

    def precision_of(part: Any) -> str:
        weight = next(part.parameters())
        in_eight_bits = quantized != "none" and type(part) is torch.nn.Linear and _is_quantized(part)
        return quantized if in_eight_bits else kinds.get(weight.dtype, str(weight.dtype))

    return dict(Counter(map(precision_of, heavy)))


def _is_quantized(part: Any) -> bool:
    from stillhouse.backends.torch_quantize import is_quantized

    return is_quantized(part)


def _compile_options(torch: Any) -> dict[str, int]:
    """Return options for `Module.compile` that raise torch's limit of compiled variants of a block.

    Versions of torch before 2.12 have no such option. With these versions the limit is raised for the whole process,
    and the result is empty.
    """
    if "recompile_limit" in inspect_signature(torch.compile).parameters:
        return {"recompile_limit": _RECOMPILE_LIMIT}
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    return {}


def _run(
    torch: Any,
    mode: Callable[[], AbstractContextManager[Any]],
    module: Any,
    device: str,
    dtypes: Mapping[str, Any],
    memory_format: Any,
    threads: int | None,
    flags: Mapping[str, bool],
    feeds: Mapping[str, Any],
) -> list[Any]:
    """Run a network and return its outputs in float32, in order, on the network's device.

    Args:
        torch: the module torch.
        mode: context that switches gradients off.
        module: the network, called with tensors in the order of `feeds`.
        device: device of the network.
        dtypes: dtype of each floating-point input, by name.
        memory_format: memory format of four-dimensional inputs.
        threads: number of torch's threads for the whole process; None: unchanged.
        flags: flags of cuDNN; empty on the CPU.
        feeds: input arrays (NumPy or torch) by name, in the network's order.
    """
    if threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    tensors = [_to_tensor(torch, array, device, dtypes[name], memory_format) for name, array in feeds.items()]
    lock = nullcontext() if device == CPU else GPU_LOCK
    with lock, mode(), torch.backends.cudnn.flags(enabled=True, **flags) if flags else nullcontext():
        results = module(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    return [result.float().contiguous() for result in results]


def _run_to_numpy(run: Callable[[Mapping[str, Any]], Sequence[Any]], feeds: Tensors) -> list[NDArray[Any]]:
    return [result.cpu().numpy() for result in run(feeds)]


def _to_tensor(torch: Any, array: Any, device: str, dtype: Any, memory_format: Any) -> Any:
    # A NumPy array is copied by torch.tensor, since torch would warn about a tensor that shares memory with a read-only
    # array.
    tensor = array if isinstance(array, torch.Tensor) else torch.tensor(array)
    if not tensor.is_floating_point():
        return tensor.to(device)
    memory_format = memory_format if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(device=device, dtype=dtype, memory_format=memory_format)


def _spec(name: str, dtype: str, axes: Sequence[int | str | None]) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(axis if isinstance(axis, int) else None for axis in axes))


def _compiles_per(settings: Settings) -> Literal["never"]:
    """Return "never": a network is not opened again for a new shape, since torch compiles at the first call with it."""
    return "never"


BACKEND = Backend(
    _NAME,
    open_graph,
    status,
    install_command(_NAME),
    settings=SETTINGS,
    device_arrays=torch_device_arrays,
    compiles_per=_compiles_per,
    runs_modules=True,
    adapter_settings={"quantize": "none", "offload": "none"},
    packages=(_NAME, "diffusers"),
    candidates=candidates,
    exclusion=exclusion,
    # Where torch's first candidate has less than 0.3 of the speed of the fastest candidate so far, torch's other
    # candidates are skipped, since none of them was ever measured to be 1 / 0.3 times as fast as the first.
    dominated_below=0.3,
)
