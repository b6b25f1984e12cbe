"""SiLU, also called swish: x * sigmoid(x) (arXiv 1702.03118).

Bytes that must move: each element read once and written once.
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
    to_dense,
    uses_kernel,
)


@autotune(["bucket"], warps=(4,), BLOCK=(1024, 2048))
@triton.jit
def _silu(x, out, count, bucket, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value * tl.sigmoid(value), mask=inside)


@torch.library.custom_op("stillhouse::silu", mutates_args=())
def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x), with the same order of its axes in memory.

    Args:
        x: float16, bfloat16 or float32 of any shape.

    Raises:
        UnsupportedPrecision: `x` has another dtype.
    """
    x = to_dense(x)
    if not uses_kernel(x):
        return reference(x)
    out = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _silu[block_grid(x.numel())](x, out, x.numel(), size_bucket(x.numel()))
    return out


@silu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(to_dense(x))


def reference(x: Tensor) -> Tensor:
    """Return the result of `silu`, computed in plain torch."""
    return torch.nn.functional.silu(x)


def bytes_moved(x: Tensor) -> int:
    """Return the least number of bytes that a SiLU must read and write: each element once."""
    return 2 * x.numel() * x.element_size()


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile: each dtype, in one or more configurations of autotuning."""
    for name in DTYPES.values():
        kinds = {"x": f"*{name}", "out": f"*{name}", "count": "i32", "bucket": "i32"}
        yield from compile_cases(_silu, f"silu {name}", kinds, {})
