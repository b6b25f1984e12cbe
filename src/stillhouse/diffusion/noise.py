"""Noise by counter: what a picture draws depends on its seed and its step, never on the batch, load or order."""

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
"""The step whose noise a walk begins with."""


def gaussian(seed: int, step: int, shape: Sequence[int]) -> Array:
    """Standard normal float32 of this shape, always the same for the same seed and step.

    Args:
        seed: 0 to 2**63 - 1.
        step: which evaluation of the walk asks; START, -1, for the noise that it begins with.
        shape: as NumPy's.

    Raises:
        InvalidRequest: a seed or step outside its range.

    >>> first = gaussian(7, START, (4, 8, 8))
    >>> bool((first == gaussian(7, START, (4, 8, 8))).all()), bool((first == gaussian(7, 0, (4, 8, 8))).any())
    (True, False)
    """
    check_seed(seed)
    check_integer("step", step, INITIAL_STEP, MAX_SEED)
    bits = Philox(_Key(seed, step))  # type: ignore[arg-type]  # NumPy's stubs leave its own interface out
    return Generator(bits).standard_normal(tuple(shape), np.float32)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number from 0 to 2**63 - 1."""
    check_integer("seed", seed, 0, MAX_SEED)


class _Key(ISeedSequence):
    """Philox's two key words as they are: Philox(key=...) is the same, and spends most of its time on entropy."""

    def __init__(self, seed: int, step: int) -> None:
        self.words = np.array([seed, step - INITIAL_STEP], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[np.uint64]:
        return self.words
