"""Each fused kernel beside eager torch and what torch.compile makes of the same, as a share of a copy's bandwidth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.timing import ROUNDS, copy_timers, graph_timer, repeats_beyond_cache
from stillhouse.backends.kernels import cast, geglu, group_norm, guided_step, layer_norm, silu
from stillhouse.measure.clock import paired_ratio, run_interleaved

_GROUPS, _EPS = 32, 1e-5
_OTHERS = ("SiLU", "cast to f32")


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel on one shape.

    Args:
        name: of the kernel.
        where: whose shape it is.
        fused, plain: the op, and its reference.
        inputs: of both.
        moved: bytes that must move.
        others: other ways of the kernel by name, which are timed beside the one that it takes.
    """

    name: str
    where: str
    fused: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: tuple[Any, ...]
    bytes_moved: int
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def measure_kernels(
    device: str, dtype: torch.dtype, is_small: bool, is_in_time: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """A row for each kernel and shape, as long as there is time; what fails is a row with its reason.

    Args:
        device: cuda, or cpu to see that it runs.
        dtype: of everything.
        is_small: shapes that a processor can run.
        is_in_time: whether another row may be begun.
    """
    # First those that must come to a share; the others' bytes are any tensor's.
    for work in sorted(_kernel_cases(device, dtype, is_small), key=lambda work: work.name in _OTHERS):
        told = {"kernel": work.name, "where": work.where, "dtype": str(dtype).removeprefix("torch.")}
        if not is_in_time():
            yield {**told, "reason": "the time was up"}
            continue
        try:
            yield {**told, **_measure(work, device)}
        except Exception as error:
            yield {**told, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _measure(case: KernelCase, device: str) -> dict[str, Any]:
    """All ways and a copy of as many bytes in turns: their ratios hold where clocks do not."""
    torch._dynamo.reset()
    ways: Mapping[str, Callable[..., Any]] = {
        "fused": case.fused,
        "eager": case.plain,
        "compiled": torch.compile(case.plain, dynamic=False) if device != "cpu" else case.plain,
    }
    several = [
        case.inputs,
        *(_clone_inputs(case.inputs) for _ in range(repeats_beyond_cache(case.bytes_moved, device) - 1)),
    ]
    clocks = copy_timers(case.bytes_moved, device)
    named = tuple(clocks)
    for name, way in {**ways, **case.others}.items():
        clocks[name] = graph_timer([partial(way, *inputs) for inputs in several], device)
    seconds = run_interleaved(clocks, ROUNDS if device != "cpu" else 1)
    copy = min((seconds[name] for name in named), key=median)
    told: dict[str, Any] = {"bytes": case.bytes_moved, "copy_bytes_per_second": case.bytes_moved / median(copy)}
    for name in ways:
        share = paired_ratio(copy, seconds[name])
        spread = [share.low, share.high]
        told[name] = {"microseconds": 1e6 * median(seconds[name]), "share": share.value, "interval": spread}
    if case.others:
        told["others"] = {name: 1e6 * median(seconds[name]) for name in case.others}
    ahead = paired_ratio(seconds["compiled"], seconds["fused"])
    return {**told, "ahead": [ahead.value, ahead.low, ahead.high], "error": _relative_error(case)}


def compile_kernels(device: str, dtype: torch.dtype, model: str) -> None:
    """All of a model's shapes once, and nothing measured: what is compiled for it stays on disk."""
    for work in (one for one in _kernel_cases(device, dtype, is_small=False) if one.where.startswith(model)):
        work.fused(*work.inputs)
        torch._dynamo.reset()
        torch.compile(work.plain, dynamic=False)(*work.inputs)


def _clone_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same numbers somewhere else."""
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)


def _relative_error(case: KernelCase) -> float:
    """The largest difference from the reference in float64, beside the largest value."""

    def exact(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def several(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,)

    given = tuple(exact(value) if not isinstance(value, torch.dtype) else torch.float64 for value in case.inputs)
    pairs = zip(several(case.fused(*case.inputs)), several(case.plain(*given)), strict=True)
    return max(float((ours.double() - wanted).abs().max() / wanted.abs().max()) for ours, wanted in pairs)


def _kernel_cases(device: str, dtype: torch.dtype, is_small: bool) -> Iterator[KernelCase]:
    """Two rows, of a guided picture, at each depth of a U-Net that its norms and transformers are at."""
    depths = {
        "SD 1.5": [(64, 320, True), (32, 640, True), (16, 1280, True)],
        "SDXL": [(128, 320, False), (64, 640, True), (32, 1280, True)],
    }
    if is_small:
        depths = {"small": [(8, 64, True)]}
    elif dtype == torch.bfloat16:  # which moves as many bytes as float16
        del depths["SDXL"]
    for where, sizes in depths.items():
        for side, channels, has_transformer in sizes:
            told = f"{where} {side}x{side}x{channels}"
            picture = _random(device, dtype, 2, channels, side, side).contiguous(memory_format=torch.channels_last)
            weight, bias = _random(device, dtype, channels), _random(device, dtype, channels)
            normed = (picture, weight, bias, _GROUPS, _EPS, True)
            moved = group_norm.bytes_moved(picture)
            ways = group_norm.group_norm, group_norm.reference
            yield KernelCase("GroupNorm + SiLU", told, *ways, normed, moved, _other_strategies(picture, device))
            if has_transformer:
                yield from _token_cases(told, device, dtype, side * side, channels)
        side, channels, _ = sizes[0]
        yield from _picture_cases(f"{where} {side}x{side}x{channels}", device, dtype, side, channels)
        yield from _latent_cases(f"{where} latents", device, dtype, side)


def _other_strategies(picture: torch.Tensor, device: str) -> Mapping[str, Callable[..., Any]]:
    """How else GroupNorm could read this picture, where a GPU can tell whether it would be quicker."""
    if device == "cpu":
        return {}
    names: tuple[group_norm.ReadStrategy, ...] = ("cached", "parts")  # what can be held, is
    taken = group_norm.read_strategy(picture, _GROUPS)
    return {name: partial(group_norm.launch_group_norm, strategy=name) for name in names if name != taken}


def _token_cases(shape: str, device: str, dtype: torch.dtype, count: int, channels: int) -> Iterator[KernelCase]:
    """What a transformer's block needs."""
    tokens, gate = _random(device, dtype, 2, count, channels), _random(device, dtype, 2, count, 8 * channels)
    weight, bias = _random(device, dtype, channels), _random(device, dtype, channels)
    yield KernelCase("GEGLU", shape, geglu.geglu, geglu.reference, (gate,), geglu.bytes_moved(gate))
    plain = (tokens, weight, bias, _EPS)
    yield KernelCase(
        "LayerNorm", shape, layer_norm.layer_norm, layer_norm.reference, plain, layer_norm.bytes_moved(tokens)
    )
    added = (tokens, _random(device, dtype, *tokens.shape), weight, bias, _EPS)
    moved = layer_norm.bytes_moved(tokens, has_residual=True)
    yield KernelCase("sum + LayerNorm", shape, layer_norm.add_layer_norm, layer_norm.add_reference, added, moved)


def _picture_cases(shape: str, device: str, dtype: torch.dtype, side: int, channels: int) -> Iterator[KernelCase]:
    """What goes over any tensor."""
    picture, target = _random(device, dtype, 2, channels, side, side), torch.float32
    yield KernelCase("SiLU", shape, silu.silu, silu.reference, (picture,), silu.bytes_moved(picture))
    moved = cast.bytes_moved(picture, target)
    yield KernelCase("cast to f32", shape, cast.cast, cast.reference, (picture, target), moved)


def _latent_cases(shape: str, device: str, dtype: torch.dtype, side: int) -> Iterator[KernelCase]:
    """A step of one picture, whose 32 KB no kernel fills a GPU with, and of as many as a busy server moves at once."""
    for count in (1, 64):
        z, output = _random(device, dtype, count, 4, side, side), _random(device, dtype, 2 * count, 4, side, side)
        weights = torch.rand(count, len(guided_step.STEP_WEIGHTS), device=device)
        stepped = (z, output, None, weights)
        moved = guided_step.bytes_moved(z, output)
        name = f"guidance + step, {count} pictures" if count > 1 else "guidance + step"
        yield KernelCase(name, shape, guided_step.guided_step, guided_step.reference, stepped, moved)


def _random(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)
