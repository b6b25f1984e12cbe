"""Attention with products in int8 on x86 processors with AVX-512 VNNI, by the C function in `int8_attention.c`."""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.compiled_function import CompiledFunction
from stillhouse.cpu import processor_flags
from stillhouse.errors import BackendFailed

INSTRUCTIONS, BF16 = ("avx512f", "avx512_vnni"), "avx512_bf16"
"""Instruction set extensions that the function needs, and the one with which it multiplies bf16."""
MAX_DIM = 256
"""Largest number of channels of a head; it must be a multiple of DIM_MULTIPLE."""
DIM_MULTIPLE = 4


INT8_ATTENTION = CompiledFunction(
    "int8_attention", "attention in int8", INSTRUCTIONS, "open the network with attention: plain"
)


Tensor = NDArray[np.float32] | NDArray[np.uint16]
"""float32, or the bits of bf16, which NumPy does not know."""


def int8_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    scale: float,
    *,
    out: Tensor | None = None,
    threads: int = 1,
    wide: bool | None = None,
) -> Tensor:
    """Return softmax(scale * Q K^T) V for each head, [rows, queries, heads * channels], of the type of the queries.

    Queries and keys are rounded to 8 bits, values and weights to bf16, or to 8 bits as well on processors that do not
    multiply bf16. For normally distributed tensors, the result keeps 40 dB, or 35 dB; where scores
    have a standard deviation of 2, 36 dB, or 18 dB.
    Rows and heads do not influence each other, and the result does not depend on `threads`. A row with NaN or infinity
    in an input has NaN in its output.

    Args:
        queries: float32 or bits of bf16, [rows, queries, heads * channels], contiguous.
        keys, values: of the same type, [rows, keys, heads * channels], contiguous.
        heads: number of heads.
        scale: factor of the products, usually channels ** -0.5.
        out: contiguous array for the result; None: a new one.
        threads: number of threads.
        wide: whether values and weights are multiplied in bf16, as inputs in bf16 demand; None: where the processor
            does so.

    Raises:
        RuntimeMissing: the processor or the installation lacks the function.
        BackendFailed: there is too little memory.

    >>> x = np.random.default_rng(0).standard_normal((1, 64, 8), np.float32)
    >>> int8_attention(x, x, x, heads=1, scale=0.35).shape  # doctest: +SKIP
    (1, 64, 8)
    """
    rows, count, width = queries.shape
    result = np.empty_like(queries) if out is None else out
    arrays = (ctypes.c_void_p(array.ctypes.data) for array in (queries, keys, values, result))
    sizes = map(ctypes.c_int64, (rows, count, keys.shape[1], heads, width // heads))
    is_wide = multiplies_bf16() if wide is None else wide
    is_bf16 = queries.dtype == np.uint16
    if INT8_ATTENTION.load()(*arrays, *sizes, ctypes.c_float(scale), threads, is_wide, is_bf16):
        raise BackendFailed("there is too little memory for attention in int8")
    return result


@cache
def multiplies_bf16() -> bool:
    """Return whether values and weights are multiplied in bf16 on this processor."""
    return BF16 in processor_flags()
