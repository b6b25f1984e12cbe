"""The configurations of the torch backend that `stillhouse accelerate` measures."""

from collections.abc import Iterator
from dataclasses import replace

from stillhouse.backends.backend import CandidateContext, CandidateSpec, missing_fp8, missing_package
from stillhouse.backends.torch_device import CUDA, gpu_device

_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
_FIRST_GPU_RANK, _GPU_RANK, _LAST_GPU_RANK, _CPU_RANK = 0, 20, 40, 70
_CHANNELS_LAST = {"memory_format": "channels_last"}
_FUSED = {**_CHANNELS_LAST, "kernels": "fused"}
_CAPTURED = {"graphs": "cuda", "shapes": "static"}
_COMPILED = {**_FUSED, "compile": "full", **_CAPTURED}


def candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of torch that `stillhouse accelerate` measures, on a GPU and on the processor."""
    yield from _gpu_candidates(context)
    yield from _cpu_candidates(context)


def _gpu_candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    device = gpu_device(context.device)

    def spec(precision: str = "f16", /, **options: str) -> CandidateSpec:
        return CandidateSpec("f32", precision, {"device": device, "attention": "sdpa", **options}, _GPU_RANK)

    yield replace(spec(**_CAPTURED), rank=_FIRST_GPU_RANK)
    if context.cost == "low":
        return
    if context.role == "denoiser":
        yield spec(**_COMPILED, qkv="joined")
        yield spec(**_COMPILED, qkv="joined", attention="cudnn")
        yield spec(**_COMPILED, qkv="joined", attention="flash")
        yield spec("bf16", **_COMPILED, qkv="joined")
        yield spec("bf16", **_COMPILED, quantize="fp8")
        yield spec(**_COMPILED, quantize="int8")
        yield spec(**_FUSED, **_CAPTURED, qkv="joined")
    yield spec(**_COMPILED)
    yield spec(**_FUSED, **_CAPTURED)
    yield spec("bf16", **_FUSED, **_CAPTURED)
    yield spec(**_FUSED, compile="full", shapes="static")
    yield spec(**_CHANNELS_LAST, compile="full", shapes="static")
    yield spec(**_FUSED)
    yield spec(**_CHANNELS_LAST)
    yield spec()
    yield spec("f32")
    last: list[CandidateSpec] = []
    if context.role == "decoder" and context.decoder_side:
        # Decoding in tiles saves memory, since activations take most of a decoder's memory in large pictures.
        last.append(spec(**_FUSED, **_CAPTURED, tile=str(context.decoder_side // 2)))
    if context.role == "denoiser":
        last.append(spec(**_CHANNELS_LAST, compile="regional", shapes="static"))
        last += [spec(attention="vanilla"), spec(attention="sliced"), spec(offload="cpu")]
    yield from (replace(candidate, rank=_LAST_GPU_RANK) for candidate in last)


def _cpu_candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    def spec(precision: str = "f32", /, **options: str) -> CandidateSpec:
        return CandidateSpec("f32", precision, options, _CPU_RANK)

    if context.cost == "high":
        yield spec(attention="sdpa")
    if context.role == "denoiser":
        yield spec(attention="vanilla")
        yield spec(attention="sdpa", **_CHANNELS_LAST)
        yield spec("bf16", attention="sdpa", **_CHANNELS_LAST)
        yield spec(attention="sdpa", compile="regional", shapes="static")
        yield spec(attention="sdpa", compile="full", shapes="static", **_CHANNELS_LAST)
        yield spec(attention="sliced")
        yield spec(attention="sdpa", offload="cpu")


def exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Return why a configuration of torch cannot run here, or would gain nothing; "" where it should be measured."""
    if "device" not in spec.options:
        return _cpu_exclusion(spec, context)
    if not any(device.startswith(CUDA) for device in context.status.devices):
        return f"torch {context.status.version} was built without CUDA"
    if spec.options.get("kernels") == "fused" and (
        reason := missing_package("triton", "which compiles the fused kernels")
    ):
        return reason
    quantize = spec.options.get("quantize")
    if quantize and (reason := missing_package("torchao", "which quantizes it")):
        return reason
    return missing_fp8(context.gpu(spec.options["device"])) if quantize == "fp8" else ""


def _cpu_exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    if "offload" in spec.options:
        return "the components run on the CPU, so they are in its memory already"
    if spec.precision == "bf16" and not _BF16_INSTRUCTIONS.intersection(context.instructions):
        return "this CPU has no bf16 instructions, so torch would convert at every operation"
    return ""
