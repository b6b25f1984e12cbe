"""Group normalisation of bf16 tensors whose channels are innermost, by the C function in `group_norm.c`."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.compiled_function import CompiledFunction
from stillhouse.errors import BackendFailed

INSTRUCTIONS = ("avx512f", "avx512_bf16")
"""Instruction set extensions that the function needs."""


GROUP_NORM = CompiledFunction(
    "group_norm", "fused group normalisation", INSTRUCTIONS, "open the network with layers: plain"
)


def group_norm(
    x: NDArray[np.uint16],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    groups: int,
    epsilon: float,
    *,
    silu: bool = False,
    out: NDArray[np.uint16] | None = None,
    threads: int = 1,
) -> NDArray[np.uint16]:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + shift of each row and group, the bits of bf16.

    Mean and variance are taken over all pixels and the channels of a group (Wu and He 2018, arXiv:1803.08494). All is
    computed in float32 or float64 and rounded once. Rows do not influence each other, and the result does not depend
    on `threads`. A row with NaN or infinity in a group has NaN in the whole group.

    Args:
        x: bits of bf16, [rows, ..., channels], contiguous.
        scale, shift: float32 [channels].
        groups: number of groups of neighbouring channels; divides the channels.
        epsilon: added to the variances.
        silu: whether y / (1 + exp(-y)) is returned in place of y.
        out: contiguous array for the result; None: a new one.
        threads: number of threads. Small tensors are computed on one.

    Raises:
        RuntimeMissing: the processor or the installation lacks the function.
        BackendFailed: there is too little memory.

    >>> x = np.full((1, 2, 2, 4), 0x3F80, np.uint16)  # ones
    >>> group_norm(x, np.ones(4, np.float32), np.zeros(4, np.float32), 2, 1e-5).any()  # doctest: +SKIP
    False
    """
    rows, channels = x.shape[0], x.shape[-1]
    result = np.empty_like(x) if out is None else out
    arrays = (ctypes.c_void_p(array.ctypes.data) for array in (x, result, scale, shift))
    sizes = map(ctypes.c_int64, (rows, x.size // (rows * channels), channels, groups))
    if GROUP_NORM.load()(*arrays, *sizes, ctypes.c_float(epsilon), silu, threads):
        raise BackendFailed("there is too little memory for a group normalisation")
    return result
