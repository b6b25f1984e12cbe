"""Cast of a tensor to another dtype.

Bytes that must move: each element read once in one dtype, and written once in the other.
"""

from collections.abc import Iterator
from itertools import permutations

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
def _cast(x, out, count, bucket, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, tl.load(x + at, mask=inside), mask=inside)


@torch.library.custom_op("stillhouse::cast", mutates_args=())
def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another dtype, with the same order of its axes in memory.

    Args:
        x: float16, bfloat16 or float32 of any shape.
        dtype: float16, bfloat16 or float32.

    Raises:
        UnsupportedPrecision: `x` or the result would have another dtype than these.
    """
    x = to_dense(x)
    out = torch.empty_like(x, dtype=dtype)
    if not uses_kernel(x, out):
        return out.copy_(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _cast[block_grid(x.numel())](x, out, x.numel(), size_bucket(x.numel()))
    return out


@cast.register_fake
def _(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(to_dense(x), dtype=dtype)


def reference(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the result of `cast`, computed in plain torch."""
    return x.to(dtype)


def bytes_moved(x: Tensor, dtype: torch.dtype) -> int:
    """Return the least number of bytes that a cast must read and write: each element once in both dtypes."""
    return x.numel() * (x.element_size() + dtype.itemsize)


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile: each pair of different dtypes, in one or more configurations of autotuning."""
    for source, target in permutations(DTYPES.values(), 2):
        kinds = {"x": f"*{source}", "out": f"*{target}", "count": "i32", "bucket": "i32"}
        yield from compile_cases(_cast, f"cast {source} {target}", kinds, {})
