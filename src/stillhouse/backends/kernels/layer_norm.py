"""LayerNorm (arXiv 1607.06450) over the last axis, alone or together with the residual sum before it.

    out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias,   s = x, or x + residual

In a transformer block each norm but the first follows a sum: eager torch writes the sum, reads it twice, and writes the
norm.

How many rows a program takes is tuned for each number of rows of the input. The order of additions follows from this
choice, so the last bit of a norm may depend on the size of the batch.

Bytes that must move: x read once and the norm written once. With a residual, also the residual read and the sum
written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import DTYPES, CompileCase, autotune, compile_cases, size_bucket, uses_kernel
from stillhouse.errors import InvalidRequest

_FEWEST, _MOST = 1024, 4096
"""Smallest and largest number of elements that one program of the kernel should normalise."""


def _prune_configs(configs: Sequence[Any], named_args: Mapping[str, Any], **constants: Any) -> Sequence[Any]:
    """Return the configurations in which a program normalises 1024 to 4096 elements; if there are none, the nearest.

    Args:
        configs: all configurations, which differ in the rows of a program and in the number of warps.
        named_args, constants: the kernel's arguments by name, among them COLUMNS, the number of elements of a row.
    """
    wide = {**named_args, **constants}["COLUMNS"]
    fitting = [config for config in configs if _FEWEST <= config.kwargs["ROWS"] * wide <= _MOST]
    best = (1, 4) if wide > _MOST else (8, 1)
    nearest = [config for config in configs if (config.kwargs["ROWS"], config.num_warps) == best]
    return fitting or nearest or configs[:1]


@autotune(["columns", "bucket", "RESIDUAL"], warps=(1, 4), prune=_prune_configs, ROWS=(1, 2, 4, 8))
@triton.jit
def _layer_norm(
    x,
    residual,
    weight,
    bias,
    out,
    added,
    rows,
    bucket,
    eps,
    columns: tl.constexpr,
    COLUMNS: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    lane_mask = column < columns
    inside = (row < rows)[:, None] & lane_mask[None, :]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    # All inputs are loaded before the first tl.sum, since a sum makes all lanes wait, and a load after it would start
    # late.
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column, mask=lane_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=lane_mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(added + at, value, mask=inside)
    mean = tl.sum(value, axis=1) / columns
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / columns + eps)
    tl.store(out + at, centred * scale[:, None] * gain[None, :] + shift[None, :], mask=inside)


@torch.library.custom_op("stillhouse::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the LayerNorm of `x` over its last axis.

    Args:
        x: float16, bfloat16 or float32, [..., D].
        weight, bias: [D].
        eps: added to the variance.

    Raises:
        InvalidRequest: `weight` or `bias` has another length than the last axis.
        UnsupportedPrecision: a tensor has another dtype.
    """
    x = _check_weights(x, weight, bias)
    if not uses_kernel(x, weight, bias):
        return reference(x, weight, bias, eps)
    out = torch.empty_like(x)
    _launch(x, x, weight, bias, out, out, eps, has_residual=False)
    return out


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("stillhouse::add_layer_norm", mutates_args=())
def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the LayerNorm of x + residual over the last axis, and x + residual, both with the shape and dtype of x.

    The norm is computed from the sum before the sum is rounded to its dtype.

    Args:
        x, residual: tensors of the same shape, [..., D], and the same dtype: float16, bfloat16 or float32.
        weight, bias: [D].
        eps: added to the variance.
    """
    x, residual = _check_weights(x, weight, bias), residual.contiguous()
    if residual.shape != x.shape or residual.dtype != x.dtype:
        shapes = [f"{list(tensor.shape)} {tensor.dtype}" for tensor in (residual, x)]
        raise InvalidRequest(f"residual {shapes[0]} does not fit x {shapes[1]}", allowed="the same shape and dtype")
    if not uses_kernel(x, weight, bias):
        return add_reference(x, residual, weight, bias, eps)
    out, added = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, bias, out, added, eps, has_residual=True)
    return out, added


@add_layer_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(x, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the result of `layer_norm`, computed in plain torch."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the result of `add_layer_norm`, norm and sum, computed in plain torch."""
    added = x + residual
    return reference(added, weight, bias, eps), added


def bytes_moved(x: Tensor, has_residual: bool = False) -> int:
    """Return the least number of bytes that a LayerNorm must read and write, without the weights, which rows share.

    Args:
        x: the input.
        has_residual: whether a residual is added first; then the residual is also read, and the sum is also written.
    """
    return (4 if has_residual else 2) * x.numel() * x.element_size()


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile: each dtype, with and without a residual, at 320 and at 1280 channels.

    These are the smallest and the largest width of Stable Diffusion's layers.
    """
    for name in DTYPES.values():
        for columns in (320, 1280):
            for residual in (False, True):
                tensors = dict.fromkeys(("x", "residual", "weight", "bias", "out", "added"), f"*{name}")
                wide = triton.next_power_of_2(columns)
                constants = {"columns": columns, "COLUMNS": wide, "RESIDUAL": residual}
                numbers = {"rows": "i32", "bucket": "i32", "eps": "fp32"}
                label = f"layer_norm {name} {columns}{' residual' if residual else ''}"
                yield from compile_cases(_layer_norm, label, {**tensors, **numbers}, constants)


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise InvalidRequest(
            f"weight {list(weight.shape)} and bias {list(bias.shape)} do not fit an input {list(x.shape)}",
            allowed=f"{list(x.shape[-1:])}, one for each column",
        )
    return x.contiguous()


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    added: Tensor,
    eps: float,
    has_residual: bool,
) -> None:
    columns = x.shape[-1]
    rows = x.numel() // max(1, columns)
    if rows:
        with torch.cuda.device_of(x):
            _layer_norm[lambda meta: (triton.cdiv(rows, meta["ROWS"]),)](
                x,
                residual,
                weight.contiguous(),
                bias.contiguous(),
                out,
                added,
                rows,
                size_bucket(rows),
                eps,
                columns,
                triton.next_power_of_2(columns),
                has_residual,
            )
