"""Attention with products in int8 on the processor, by the C function in `int8_attention.c`.

Installing the package compiles the function where there is a C compiler. It needs an x86 processor with AVX-512 VNNI.
"""

import ctypes
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.cpu import processor_flags
from stillhouse.errors import BackendFailed, RuntimeMissing

INSTRUCTIONS, BF16 = ("avx512f", "avx512_vnni"), "avx512_bf16"
"""Instruction set extensions that the function needs, and the one with which it multiplies bf16."""
MAX_DIM = 256
"""Largest number of channels of a head; it must be a multiple of DIM_MULTIPLE."""
DIM_MULTIPLE = 4


def missing_reason(instructions: Collection[str]) -> str:
    """Return why the function cannot run on a processor with these instruction set extensions; "" where it can."""
    missing = [name for name in INSTRUCTIONS if name not in instructions]
    if missing:
        return f"attention in int8 needs {' and '.join(missing)}, which this processor lacks"
    if find_spec("stillhouse.backends._int8_attention") is None:
        return "attention in int8 was not compiled: install a C compiler, then reinstall stillhouse"
    return ""


def int8_attention(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    heads: int,
    scale: float,
    *,
    out: NDArray[np.float32] | None = None,
    threads: int = 1,
    wide: bool | None = None,
) -> NDArray[np.float32]:
    """Return softmax(scale * Q K^T) V for each head, float32 [rows, queries, heads * channels].

    Queries and keys are rounded to 8 bits, values and weights to bf16, or to 8 bits as well on processors that do not
    multiply bf16. For normally distributed tensors, the result keeps 40 dB, or 35 dB; where scores
    have a standard deviation of 2, 36 dB, or 18 dB.
    Rows and heads do not influence each other, and the result does not depend on `threads`. A row with NaN or infinity
    in an input has NaN in its output.

    Args:
        queries: float32 [rows, queries, heads * channels], contiguous.
        keys, values: float32 [rows, keys, heads * channels], contiguous.
        heads: number of heads.
        scale: factor of the products, usually channels ** -0.5.
        out: contiguous array for the result; None: a new one.
        threads: number of threads.
        wide: whether values and weights are multiplied in bf16; None: where the processor does so.

    Raises:
        RuntimeMissing: the processor or the installation lacks the function; see `missing_reason`.
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
    if load_library().int8_attention(*arrays, *sizes, ctypes.c_float(scale), threads, is_wide):
        raise BackendFailed("there is too little memory for attention in int8")
    return result


@cache
def multiplies_bf16() -> bool:
    """Return whether values and weights are multiplied in bf16 on this processor."""
    return BF16 in processor_flags()


@cache
def load_library() -> Any:
    """Return the compiled library. Its threads run on the processors that the first caller may use.

    So the first call must come before a runtime pins its threads.

    Raises:
        RuntimeMissing: as `int8_attention`.
    """
    if reason := missing_reason(processor_flags()):
        raise RuntimeMissing(reason, fix="open the network with attention: plain")
    specification = find_spec("stillhouse.backends._int8_attention")
    assert specification and specification.origin
    library = ctypes.CDLL(specification.origin)
    library.int8_attention_setup()
    return library
