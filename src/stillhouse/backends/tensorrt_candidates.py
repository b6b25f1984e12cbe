"""The configurations of TensorRT and of TensorRT for RTX that `stillhouse accelerate` measures."""

from collections.abc import Iterator

from stillhouse.backends.backend import CandidateContext, CandidateSpec, missing_fp8
from stillhouse.backends.torch_device import gpu_device

_RANK, _LAST_RANK = 10, 41


def rtx_candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of TensorRT for RTX that `stillhouse accelerate` measures."""
    if context.cost == "low":
        return
    for recipe in ("f16", "fp8-static", "int8-static", "f32"):
        yield _spec(context, recipe, _RANK)


def candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of TensorRT that `stillhouse accelerate` measures."""
    yield from rtx_candidates(context)
    if context.role == "decoder" and context.decoder_side:
        yield _spec(context, "f16", _LAST_RANK, tile=str(context.decoder_side // 2))


def exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Return why the GPU cannot run the precision of a candidate (a configuration to measure); "" where it can."""
    return missing_fp8(context.gpu(spec.options["device"])) if spec.recipe == "fp8-static" else ""


def _spec(context: CandidateContext, recipe: str, rank: int, **options: str) -> CandidateSpec:
    axes = {"axes": context.axis_ranges} if context.axis_ranges else {"graphs": "cuda"}
    device = gpu_device(context.device)
    return CandidateSpec(recipe, "auto", {"device": device, "shapes": "static", **axes, **options}, rank)
