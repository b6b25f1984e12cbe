"""GEGLU (arXiv 2002.05202) of a projection: the first half times the GELU of the second.

    out[r, c] = x[r, c] * gelu(x[r, D + c])

GELU(x) is x times the normal cumulative distribution at x. For half precision the distribution is computed by one
exponential and a polynomial (Abramowitz and Stegun, 7.1.26), whose error of at most 7.5e-8 is far below the rounding
error of 2.4e-4. With the exact function, a GPU would spend more time computing than reading.

Eager torch splits the projection, writes the GELU, and multiplies: it reads and writes 5 D elements of each row.

Bytes that must move: 2 D elements of each row are read, and D are written.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import (
    DTYPES,
    CompileCase,
    autotune,
    block_grid,
    compile_cases,
    size_bucket,
    uses_kernel,
)
from stillhouse.errors import InvalidRequest

_WIDE = 2**31
"""Smallest number of elements at which 32-bit indices overflow."""


@autotune(["columns", "bucket"], BLOCK=(1024, 2048))
@triton.jit
def _geglu(
    x,
    out,
    count,
    bucket,
    columns: tl.constexpr,
    TANH: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:  # 64-bit indices only for large tensors, since dividing 64-bit integers takes longer than the loads
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    # The row (at // columns) and column (at % columns) come from the flat index `at`, so that a block may cross rows. A
    # block for each row would waste lanes where `columns` is no power of two.
    first = at // columns * (2 * columns) + at % columns
    value = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + first + columns, mask=inside, other=0.0).to(tl.float32)
    if TANH:
        # gelu(g) = g (1 + tanh(y)) / 2 with y = sqrt(2 / pi) (g + 0.044715 g^3). A sigmoid replaces tanh, because
        # sigmoid(2 y) is (1 + tanh(y)) / 2. The factor 1.5957691216057308 is 2 sqrt(2 / pi).
        gelu = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif HALF:
        gelu = gate * _normal_cdf(gate)
    else:
        gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + at, value * gelu, mask=inside)


@triton.jit
def _normal_cdf(x):
    """Return the normal cumulative distribution at x, computed from the smaller tail, so that no digits cancel."""
    # Formula 7.1.26 of Abramowitz and Stegun approximates erf with the constant 0.3275911. The constant is divided by
    # sqrt(2) here, because the normal distribution needs erf at x / sqrt(2).
    t = 1.0 / (1.0 + 0.23164188911 * tl.abs(x))
    rest = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * t * (0.254829592 + t * (-0.284496736 + t * rest)) * tl.exp(-0.5 * x * x)
    return tl.where(x < 0, tail, 1.0 - tail)


@torch.library.custom_op("stillhouse::geglu", mutates_args=())
def geglu(x: Tensor, tanh: bool = False) -> Tensor:
    """Return the first half of the last axis times the GELU of the second, as a contiguous tensor [..., D].

    Raise InvalidRequest if the last axis has an odd length, UnsupportedPrecision if `x` has a dtype not listed here.

    Args:
        x: float16, bfloat16 or float32, [..., 2 D].
        tanh: use the approximation with tanh (arXiv 1606.08415, section 2), which some networks were trained with.
    """
    columns = _output_columns(x)
    x = x.contiguous()
    if not uses_kernel(x):
        return reference(x, tanh)
    out = x.new_empty(*x.shape[:-1], columns)
    if out.numel():
        constants = (tanh, x.dtype != torch.float32, x.numel() >= _WIDE)
        with torch.cuda.device_of(x):
            _geglu[block_grid(out.numel())](x, out, out.numel(), size_bucket(out.numel()), columns, *constants)
    return out


@geglu.register_fake
def _(x: Tensor, tanh: bool = False) -> Tensor:
    return x.new_empty(*x.shape[:-1], _output_columns(x))


def reference(x: Tensor, tanh: bool = False) -> Tensor:
    """Return the result of `geglu`, computed in plain torch."""
    value, gate = x.chunk(2, dim=-1)
    return value * torch.nn.functional.gelu(gate, approximate="tanh" if tanh else "none")


def bytes_moved(x: Tensor, tanh: bool = False) -> int:
    """Return the least number of bytes that GEGLU must read and write: all inputs, and half as many outputs."""
    return x.numel() * x.element_size() * 3 // 2


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile, at the width of Stable Diffusion's widest layer.

    Each dtype has three variants: the exact GELU, the approximation by tanh, and the exact GELU with 64-bit indices.
    """
    for name in DTYPES.values():
        for tanh, wide in ((False, False), (True, False), (False, True)):
            count = "i64" if wide else "i32"
            kinds = {"x": f"*{name}", "out": f"*{name}", "count": count, "bucket": "i32"}
            label = f"geglu {name}{' tanh' if tanh else ''}{' wide' if wide else ''}"
            constants = {"columns": 5120, "TANH": tanh, "HALF": name != "fp32", "WIDE": wide}
            yield from compile_cases(_geglu, label, kinds, constants)


def _output_columns(x: Tensor) -> int:
    if not x.ndim or x.shape[-1] % 2:
        raise InvalidRequest(f"GEGLU got a tensor {list(x.shape)}", allowed="an even last axis: values, then gates")
    return x.shape[-1] // 2
