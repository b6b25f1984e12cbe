"""The plan: every candidate that makes sense on this machine, likely best first; every other one with its reason."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from stillhouse.accelerate.records.candidate import BATCH_DEPENDENT, DECODER, GRAPH_RECIPES, Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.backends.runtime import INSTALL_COMMANDS, BackendStatus
from stillhouse.backends.torch_device import CUDA
from stillhouse.gpu import device_index, no_gpu_reason
from stillhouse.measure.machine import Machine
from stillhouse.pipelines.manifest import SMALLEST_TILE

BASELINE_BACKEND = "onnxruntime"
HEAVY_COMPONENTS = ("unet", "network")
"""Components that a picture's time is spent in; the others get the candidates that can pay for themselves."""
LIGHT_COMPONENTS = ("text_encoder", "text_encoder_2", "vae_encoder")
"""Components that run once for a picture, or not at all when their answer is still kept."""
_BUILTIN_BACKENDS = ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx")
_PROVIDERS = {"cuda": "CUDA", "tensorrt": "Tensorrt"}
"""What onnxruntime's providers on a GPU are called in its status."""
_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
_DOMINATED_RATIO = 0.3
"""Of the fastest candidate's speed: what torch's variants have been seen to gain at most, and more."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What decides which candidates make sense.

    Args:
        backends: as `backends.registry.backends` says, by name.
        machine: this one.
        has_modules: whether torch can open the networks, because the source is a diffusers directory.
        dynamic_rows: whether the graph takes batches of any size.
        threads: how many may be used.
        side: pixels of the longer side of what a decoder makes; None of any other network.
        device: as of `Asked`.
        ranges: of a graph's axes, see `asked.ranges_of`.
        rows: sizes of batches that a static U-Net is to be opened for; empty: the usual.
    """

    backends: Mapping[str, BackendStatus]
    machine: Machine
    has_torch_modules: bool
    has_dynamic_batch: bool
    threads: int
    decoder_side: int | None = None
    device: str = "auto"
    axis_ranges: str = ""
    rows: tuple[int, ...] = ()


def plan_candidates(
    component: str, environment: Environment, extra_candidates: Iterable[Candidate] = ()
) -> list[Trial | Candidate]:
    """Candidates in the order in which they are to be tried, the baseline first; excluded ones as trials.

    Short on purpose: a lattice of under a hundred points, ordered by what was fastest where it was measured.

    Args:
        component: what is to be run.
        around: where.
        others: candidates that only the caller can know, to be tried after the baseline.
    """
    considered = [
        Candidate(component, BASELINE_BACKEND),
        *extra_candidates,
        *_gpu_candidates(component, environment),
        *_openvino_candidates(component, environment),
        *_onnxruntime_candidates(component, environment),
        *_torch_candidates(component, environment),
        *(Candidate(component, name) for name in environment.backends if name not in _BUILTIN_BACKENDS),
    ]
    if environment.rows and component == "unet":
        considered = [_with_batch_sizes(candidate, environment.rows) for candidate in considered]
    planned: list[Trial | Candidate] = []
    for candidate in considered:
        reason = _exclusion_reason(candidate, environment)
        planned.append(Trial(candidate, "excluded", reason) if reason else candidate)
    return planned


def _with_batch_sizes(candidate: Candidate, rows: Sequence[int]) -> Candidate:
    """What is static, for these sizes of batches; an engine of TensorRT's for all of them at once."""
    if candidate.options.get("shapes") != "static":
        return candidate
    together = {"batches": "together"} if candidate.backend.startswith("tensorrt") else {}
    return replace(candidate, options={**candidate.options, **together, "rows": ",".join(map(str, rows))})


def runnable_candidates(planned: Sequence[Trial | Candidate]) -> Iterator[Candidate]:
    """Those of the plan that are to be tried."""
    return (one for one in planned if isinstance(one, Candidate))


def _gpu_candidates(component: str, environment: Environment) -> Iterator[Candidate]:
    device = CUDA if environment.device in ("auto", "cpu") else environment.device

    def torch(precision: str = "f16", **options: str) -> Candidate:
        return Candidate(component, "torch", "f32", precision, {"device": device, "attention": "sdpa", **options})

    def provider(recipe: str, name: str) -> Candidate:
        return Candidate(component, "onnxruntime", recipe, "f32", {"provider": name})

    def engine(backend: str, recipe: str, **options: str) -> Candidate:
        how = {"axes": environment.axis_ranges} if environment.axis_ranges else {"graphs": "cuda"}
        return Candidate(component, backend, recipe, "auto", {"device": device, "shapes": "static", **how, **options})

    yield torch(graphs="cuda", shapes="static")
    if component in LIGHT_COMPONENTS:
        return
    for backend in ("tensorrt", "tensorrt-rtx"):
        yield engine(backend, "f16")
        yield engine(backend, "fp8-static")
        yield engine(backend, "int8-static")
        yield engine(backend, "f32")
    last = {"memory_format": "channels_last"}
    every = {**last, "kernels": "fused", "compile": "full", "shapes": "static", "graphs": "cuda"}
    if component == "unet":
        yield torch(**every, qkv="joined")
        yield torch(**every, qkv="joined", attention="cudnn")
        yield torch(**every, qkv="joined", attention="flash")
        yield torch("bf16", **every, qkv="joined")
        yield torch("bf16", **every, quantize="fp8")
        yield torch(**every, quantize="int8")
        yield torch(**last, kernels="fused", graphs="cuda", shapes="static", qkv="joined")
    yield torch(**every)
    yield torch(**last, kernels="fused", graphs="cuda", shapes="static")
    yield torch("bf16", **last, kernels="fused", graphs="cuda", shapes="static")
    yield torch(**last, kernels="fused", compile="full", shapes="static")
    yield torch(**last, compile="full", shapes="static")
    yield torch(**last, kernels="fused")
    yield torch(**last)
    yield torch()
    yield torch("f32")
    yield provider("f16", "tensorrt")
    yield provider("f16", "cuda")
    yield provider("f32", "cuda")
    if component == DECODER and environment.decoder_side:
        tile = str(environment.decoder_side // 2)  # of large pictures, a decoder's activations are most of the memory
        yield torch(**last, kernels="fused", graphs="cuda", shapes="static", tile=tile)
        yield engine("tensorrt", "f16", tile=tile)
    if component == "unet":
        yield torch(**last, compile="regional", shapes="static")
        yield torch(attention="vanilla")
        yield torch(attention="sliced")
        yield torch(offload="cpu")


def _openvino_candidates(component: str, environment: Environment) -> Iterator[Candidate]:
    def make(recipe: str = "f32", precision: str = "f32", **options: str) -> Candidate:
        return Candidate(component, "openvino", recipe, precision, options)

    apart = {"streams": str(max(2, environment.threads))}
    if component in LIGHT_COMPONENTS:
        yield make(shapes="static")
        return
    yield make(**apart)
    yield make(precision="bf16", **apart)
    yield make(precision="bf16", shapes="static")
    if component in HEAVY_COMPONENTS:
        yield make("int8-static", precision="bf16", **apart)
        yield make("int8-static", **apart)
        yield make("int8-static", shapes="static")
        yield make("int8-static", precision="bf16", shapes="static")
        yield make("int8-weights", shapes="static")
    yield make(shapes="static")
    yield make()
    if component in HEAVY_COMPONENTS:
        yield make("int4-weights", shapes="static")
        yield make(precision="f16", shapes="static")
        if environment.threads > 1:
            yield make(shapes="static", threads="1")
    if component == DECODER:
        yield make("int8-static", shapes="static")
        if environment.decoder_side:
            yield make(tile=str(environment.decoder_side // 2))


def _onnxruntime_candidates(component: str, environment: Environment) -> Iterator[Candidate]:
    def make(recipe: str = "f32", **options: str) -> Candidate:
        return Candidate(component, "onnxruntime", recipe, "f32", options)

    if component in LIGHT_COMPONENTS:
        return
    yield make("f16")
    if component in HEAVY_COMPONENTS:
        yield make(spinning="1")
        yield make("int8-static")
        yield make("uint8-dynamic")
        yield make("int8-dynamic")
        yield make(shapes="static")
        if environment.threads > 1:
            yield make(threads="1")


def _torch_candidates(component: str, environment: Environment) -> Iterator[Candidate]:
    def make(precision: str = "f32", **options: str) -> Candidate:
        return Candidate(component, "torch", "f32", precision, options)

    if component in ("unet", "network"):
        yield make(attention="sdpa")
    if component == "unet":
        yield make(attention="vanilla")
        yield make(attention="sdpa", memory_format="channels_last")
        yield make("bf16", attention="sdpa", memory_format="channels_last")
        yield make(attention="sdpa", compile="regional", shapes="static")
        yield make(attention="sdpa", compile="full", memory_format="channels_last", shapes="static")
        yield make(attention="sliced")
        yield make(attention="sdpa", offload="cpu")


def _exclusion_reason(candidate: Candidate, environment: Environment) -> str:
    """Why the candidate makes no sense here; empty where it does."""
    status = environment.backends.get(candidate.backend)
    if status is None or status.reason:
        why = status.reason if status else "it was not asked for"
        return f"{candidate.backend} is not ready: {why}; {status.install if status else 'see --engine'}"
    if candidate.backend == "torch" and not environment.has_torch_modules:
        return "torch runs diffusers networks, and this is an ONNX file without one"
    if int(candidate.options.get("tile", SMALLEST_TILE)) < SMALLEST_TILE:
        return f"half of what it decodes is less than the smallest tile, {SMALLEST_TILE} pixels"
    if candidate.is_on_gpu:
        return _gpu_exclusion_reason(candidate, status, environment)
    if "offload" in candidate.options:
        return "networks run on the processor, in the very memory that they would be sent to from an accelerator's"
    if candidate.is_batch_dependent:
        return BATCH_DEPENDENT
    asked = candidate.precision
    if (
        candidate.backend == "torch"
        and asked == "bf16"
        and not _BF16_INSTRUCTIONS.intersection(environment.machine.instructions)
    ):
        return "this processor has no bf16 instructions, and torch would compute every step of it by conversion"
    if asked not in status.precisions and asked != "f32":
        return f"this processor has no {asked} that {candidate.backend} could use: {', '.join(status.precisions)}"
    needed = "nncf" if candidate.backend == "openvino" else "onnx"
    if candidate.recipe in GRAPH_RECIPES and not find_spec(needed):
        return f"{needed}, which makes it, is not installed: pip install 'stillhouse[accelerate]'"
    if "streams" in candidate.options and not environment.has_dynamic_batch:
        return "the graph takes no batches, so there are no rows to run apart"
    return ""


def _gpu_exclusion_reason(candidate: Candidate, status: BackendStatus, environment: Environment) -> str:
    """The same of what runs on a GPU."""
    if not environment.machine.gpus:
        return f"there is no GPU: {no_gpu_reason() or 'none was there when the sweep began'}"
    if environment.device == "cpu":
        return "the processor is asked for"
    provider = candidate.options.get("provider")
    if provider and environment.device not in ("auto", CUDA, f"{CUDA}:0"):
        return "onnxruntime runs on the first GPU here"
    if provider and _PROVIDERS[provider] not in status.devices:
        return f"this build of onnxruntime has no provider {provider}: pip install onnxruntime-gpu in place of it"
    if candidate.backend == "torch" and not any(device.startswith("cuda") for device in status.devices):
        return f"torch {status.version} was built without CUDA"
    if candidate.options.get("kernels") == "fused" and not find_spec("triton"):
        return f"triton, which the fused kernels are written in, is not installed: {INSTALL_COMMANDS['triton']}"
    asked = candidate.options.get("quantize")
    if asked and not find_spec("torchao"):
        return f"torchao, which quantises it, is not installed: {INSTALL_COMMANDS['torchao']}"
    gpu = environment.machine.gpus[
        min(device_index(candidate.options.get("device", CUDA)), len(environment.machine.gpus) - 1)
    ]
    if (asked == "fp8" or candidate.recipe == "fp8-static") and not gpu.has_fp8:
        return f"{gpu.name} has no fp8: compute capability {gpu.capability}"
    if candidate.recipe in GRAPH_RECIPES and not find_spec("onnx"):
        return f"onnx, which makes it, is not installed: {INSTALL_COMMANDS['onnx']}"
    return ""


def dominated_reason(candidate: Candidate, trials: Sequence[Trial]) -> str:
    """Why a variant of torch is not worth its seconds: its plain form is far behind already. Empty where it may be."""
    if candidate.backend != "torch":
        return ""
    ratios = {trial.candidate.key: trial.ratio for trial in trials if trial.ratio and trial.status == "accepted"}
    own = [one for one in trials if one.candidate.backend == "torch" and one.candidate.is_on_gpu == candidate.is_on_gpu]
    plain = next((one.ratio for one in own if one.ratio), None)
    fastest = max((ratio.value for ratio in ratios.values()), default=0.0)
    if plain is None or plain.high >= _DOMINATED_RATIO * fastest:
        return ""
    return f"plain torch runs at {plain.value:.2f} of the baseline, the fastest at {fastest:.2f}: too far"
