"""Noise by counter: the noise of a picture follows from its seed and step, and not from its batch or its order."""

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
"""The step of the noise that a trajectory starts with."""


def gaussian(seed: int, step: int, shape: Sequence[int]) -> Array:
    """Return standard normal noise, float32 of this shape; equal for equal seed and step.

    Args:
        seed: 0 to 2**63 - 1.
        step: number of the evaluation that takes the noise; `INITIAL_STEP`, -1, for the noise of the start.
        shape: as NumPy's.

    Raises:
        InvalidRequest: a seed or step outside its range.

    >>> first = gaussian(7, INITIAL_STEP, (4, 8, 8))
    >>> bool((first == gaussian(7, INITIAL_STEP, (4, 8, 8))).all()), bool((first == gaussian(7, 0, (4, 8, 8))).any())
    (True, False)
    """
    check_integer("seed", seed, 0, MAX_SEED)
    check_integer("step", step, INITIAL_STEP, MAX_SEED)
    bits = Philox(_Key(seed, step))  # type: ignore[arg-type]  # NumPy's stubs leave its own interface out
    return Generator(bits).standard_normal(tuple(shape), np.float32)


class _Key(ISeedSequence):
    """The two words of Philox's key. `Philox(key=...)` gives the same bits, and spends most of its time on entropy."""

    def __init__(self, seed: int, step: int) -> None:
        self.words = np.array([seed, step - INITIAL_STEP], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[np.uint64]:
        return self.words
