"""LayerNorm (arXiv 1607.06450) over the last axis, and with a residual's sum before it.

    out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias,   s = x, or x + residual

In a transformer's block each norm but the first follows a sum: eager torch writes the sum, reads it twice, and writes
the norm.

How many rows a program takes is tuned for each number of rows: sums are added up in another order then, and the last
bit of a norm may hang on who is in the batch.

Bytes that must move: x read once and the norm written once; with a residual, that read and the sum written as well.
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
"""Elements of a program."""


def _prune_configs(configs: Sequence[Any], named_args: Mapping[str, Any], **constants: Any) -> Sequence[Any]:
    """Of the configurations those by which a program has enough elements, and not too many to hold."""
    wide = {**named_args, **constants}["COLUMNS"]
    fit = [one for one in configs if _FEWEST <= one.kwargs["ROWS"] * wide <= _MOST]
    rows, warps = (1, 4) if wide > _MOST else (8, 1)
    return fit or [one for one in configs if (one.kwargs["ROWS"], one.num_warps) == (rows, warps)] or configs[:1]


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
    known = column < columns
    inside = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    # All that is read is asked for before the first sum, behind which nothing moves until every lane has come.
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(added + at, value, mask=inside)
    mean = tl.sum(value, axis=1) / columns
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / columns + eps)
    tl.store(out + at, centred * scale[:, None] * gain[None, :] + shift[None, :], mask=inside)


@torch.library.custom_op("stillhouse::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis.

    Args:
        x: float16, bfloat16 or float32, [..., D].
        weight, bias: [D].
        eps: added to the variance.

    Raises:
        InvalidRequest: weights of another length.
        UnsupportedPrecision: another dtype.
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
    """The sum of a layer's output and what it was given, and the LayerNorm of it. The norm is of the exact sum.

    Args:
        x: float16, bfloat16 or float32, [..., D].
        residual: as x.
        weight, bias, eps: as in `layer_norm`.

    Returns:
        the norm, and the sum.
    """
    x, residual = _check_weights(x, weight, bias), residual.contiguous()
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise InvalidRequest(f"a residual of {list(residual.shape)} to {list(x.shape)}", allowed="the same shape")
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
    """The norm in plain torch."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sum and norm in plain torch."""
    added = x + residual
    return reference(added, weight, bias, eps), added


def bytes_moved(x: Tensor, has_residual: bool = False) -> int:
    """See the head of this file; weights are left out, which all rows share."""
    return (4 if has_residual else 2) * x.numel() * x.element_size()


def cases() -> Iterator[CompileCase]:
    """With and without a residual in each dtype, as wide as Stable Diffusion's narrowest and widest blocks."""
    for name in DTYPES.values():
        for columns in (320, 1280):
            for residual in (False, True):
                tensors = dict.fromkeys(("x", "residual", "weight", "bias", "out", "added"), f"*{name}")
                wide = triton.next_power_of_2(columns)
                constants = {"columns": columns, "COLUMNS": wide, "RESIDUAL": residual}
                numbers = {"rows": "i32", "bucket": "i32", "eps": "fp32"}
                called = f"layer_norm {name} {columns}{' residual' if residual else ''}"
                yield from compile_cases(_layer_norm, called, {**tensors, **numbers}, constants)


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise InvalidRequest(
            f"weights of {list(weight.shape)} and {list(bias.shape)} for {list(x.shape)}",
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
