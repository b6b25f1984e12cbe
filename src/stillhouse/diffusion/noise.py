"""Noise of a counter-based generator: seed and step alone decide it, not the batch or the order of pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from stillhouse.check import check_integer
from stillhouse.core import Array

MAX_SEED = 2**63 - 1
INITIAL_STEP = -1
"""The step to give to `gaussian` for the noise that a trajectory starts with."""


def gaussian(seed: int, step: int, shape: Sequence[int]) -> Array:
    """Return standard normal noise, float32 of this shape. Equal arguments give equal noise.

    Args:
        seed: 0 to 2**63 - 1.
        step: number of the evaluation that takes the noise; `INITIAL_STEP`, -1, for the noise of the start.
        shape: shape of the array.

    Raises:
        InvalidRequest: a seed or step outside its range.

    >>> first = gaussian(7, INITIAL_STEP, (4, 8, 8))
    >>> bool((first == gaussian(7, INITIAL_STEP, (4, 8, 8))).all()), bool((first == gaussian(7, 0, (4, 8, 8))).any())
    (True, False)
    """
    check_integer("seed", seed, 0, MAX_SEED)
    check_integer("step", step, INITIAL_STEP, MAX_SEED)
    bits = Philox(_Key(seed, step))  # type: ignore[arg-type]  # NumPy's stubs do not accept its ISeedSequence
    return Generator(bits).standard_normal(tuple(shape), np.float32)


class _Key(ISeedSequence):
    """Seed and step as the key of NumPy's Philox generator.

    `Philox(key=...)` gives the same bits, but first gathers entropy, which is slow.
    """

    def __init__(self, seed: int, step: int) -> None:
        self.words = np.array([seed, step - INITIAL_STEP], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[np.uint64]:
        return self.words
