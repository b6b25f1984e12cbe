"""Each fused kernel against eager torch and torch.compile, as a share of a copy's bandwidth."""

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
    """A kernel on one shape.

    Args:
        name: of the kernel.
        where: the network and place of the shape.
        fused, plain: the op, and its reference.
        inputs: of both.
        bytes_moved: bytes that must move.
        others: further strategies of the kernel by name, which are timed too.
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
    """Return a row for each kernel and shape while there is time; a failure is a row with its reason.

    Args:
        device: cuda, or cpu to show that it runs.
        dtype: of all tensors.
        is_small: use shapes for a CPU.
        is_in_time: whether another row may be started.
    """
    # Kernels with a target first; the element-wise ones last.
    for case in sorted(_kernel_cases(device, dtype, is_small), key=lambda case: case.name in _OTHERS):
        row = {"kernel": case.name, "where": case.where, "dtype": str(dtype).removeprefix("torch.")}
        if not is_in_time():
            yield {**row, "reason": "the time was up"}
            continue
        try:
            yield {**row, **_measure(case, device)}
        except Exception as error:
            yield {**row, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _measure(case: KernelCase, device: str) -> dict[str, Any]:
    """Time all implementations and a copy of as many bytes in interleaved rounds, so that their ratios hold."""
    torch._dynamo.reset()
    implementations: Mapping[str, Callable[..., Any]] = {
        "fused": case.fused,
        "eager": case.plain,
        "compiled": torch.compile(case.plain, dynamic=False) if device != "cpu" else case.plain,
    }
    copies = [
        case.inputs,
        *(_clone_inputs(case.inputs) for _ in range(repeats_beyond_cache(case.bytes_moved, device) - 1)),
    ]
    clocks = copy_timers(case.bytes_moved, device)
    copy_names = tuple(clocks)
    for name, function in {**implementations, **case.others}.items():
        clocks[name] = graph_timer([partial(function, *inputs) for inputs in copies], device)
    seconds = run_interleaved(clocks, ROUNDS if device != "cpu" else 1)
    copy = min((seconds[name] for name in copy_names), key=median)
    row: dict[str, Any] = {"bytes": case.bytes_moved, "copy_bytes_per_second": case.bytes_moved / median(copy)}
    for name in implementations:
        share = paired_ratio(copy, seconds[name])
        spread = [share.low, share.high]
        row[name] = {"microseconds": 1e6 * median(seconds[name]), "share": share.value, "interval": spread}
    if case.others:
        row["others"] = {name: 1e6 * median(seconds[name]) for name in case.others}
    ahead = paired_ratio(seconds["compiled"], seconds["fused"])
    return {**row, "ahead": [ahead.value, ahead.low, ahead.high], "error": _relative_error(case)}


def compile_kernels(device: str, dtype: torch.dtype, model: str) -> None:
    """Run all shapes of a model once, so that their compiled code is on disk."""
    for case in _kernel_cases(device, dtype, is_small=False):
        if not case.where.startswith(model):
            continue
        case.fused(*case.inputs)
        torch._dynamo.reset()
        torch.compile(case.plain, dynamic=False)(*case.inputs)


def _clone_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return copies of the tensors."""
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)


def _relative_error(case: KernelCase) -> float:
    """Return the largest difference from the reference in float64, relative to the largest value."""

    def exact(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def as_tuple(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,)

    inputs = tuple(exact(value) if not isinstance(value, torch.dtype) else torch.float64 for value in case.inputs)
    pairs = zip(as_tuple(case.fused(*case.inputs)), as_tuple(case.plain(*inputs)), strict=True)
    return max(float((actual.double() - expected).abs().max() / expected.abs().max()) for actual, expected in pairs)


def _kernel_cases(device: str, dtype: torch.dtype, is_small: bool) -> Iterator[KernelCase]:
    """Return two rows, those of a guided picture, at each depth of a U-Net with norms and transformers."""
    depths = {
        "SD 1.5": [(64, 320, True), (32, 640, True), (16, 1280, True)],
        "SDXL": [(128, 320, False), (64, 640, True), (32, 1280, True)],
    }
    if is_small:
        depths = {"small": [(8, 64, True)]}
    elif dtype == torch.bfloat16:  # it moves as many bytes as float16
        del depths["SDXL"]
    for where, sizes in depths.items():
        for side, channels, has_transformer in sizes:
            shape = f"{where} {side}x{side}x{channels}"
            picture = _random(device, dtype, 2, channels, side, side).contiguous(memory_format=torch.channels_last)
            weight, bias = _random(device, dtype, channels), _random(device, dtype, channels)
            normed = (picture, weight, bias, _GROUPS, _EPS, True)
            moved = group_norm.bytes_moved(picture)
            functions = group_norm.group_norm, group_norm.reference
            yield KernelCase("GroupNorm + SiLU", shape, *functions, normed, moved, _other_strategies(picture, device))
            if has_transformer:
                yield from _token_cases(shape, device, dtype, side * side, channels)
        side, channels, _ = sizes[0]
        yield from _picture_cases(f"{where} {side}x{side}x{channels}", device, dtype, side, channels)
        yield from _latent_cases(f"{where} latents", device, dtype, side)


def _other_strategies(picture: torch.Tensor, device: str) -> Mapping[str, Callable[..., Any]]:
    """Return the strategies that GroupNorm does not use for this picture, to compare them on a GPU."""
    if device == "cpu":
        return {}
    names: tuple[group_norm.ReadStrategy, ...] = ("cached", "parts")  # "held" is used wherever it can be
    used = group_norm.read_strategy(picture, _GROUPS)
    return {name: partial(group_norm.launch_group_norm, strategy=name) for name in names if name != used}


def _token_cases(shape: str, device: str, dtype: torch.dtype, count: int, channels: int) -> Iterator[KernelCase]:
    """Return the kernels of a transformer block."""
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
    """Return the element-wise kernels."""
    picture, target = _random(device, dtype, 2, channels, side, side), torch.float32
    yield KernelCase("SiLU", shape, silu.silu, silu.reference, (picture,), silu.bytes_moved(picture))
    moved = cast.bytes_moved(picture, target)
    yield KernelCase("cast to f32", shape, cast.cast, cast.reference, (picture, target), moved)


def _latent_cases(shape: str, device: str, dtype: torch.dtype, side: int) -> Iterator[KernelCase]:
    """Return a step of one picture, too small to fill a GPU, and of as many as a busy server computes at once."""
    for count in (1, 64):
        z, output = _random(device, dtype, count, 4, side, side), _random(device, dtype, 2 * count, 4, side, side)
        weights = torch.rand(count, len(guided_step.STEP_WEIGHTS) + 1, device=device)
        stepped = (z, output, None, weights)
        moved = guided_step.bytes_moved(z, output)
        name = f"guidance + step, {count} pictures" if count > 1 else "guidance + step"
        yield KernelCase(name, shape, guided_step.guided_step, guided_step.reference, stepped, moved)


def _random(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)
