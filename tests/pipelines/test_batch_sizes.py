"""A batch of any size is answered row by row as if it were run in one call, by a network that takes a few sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.backends.torch_arrays import TorchArrays
from stillhouse.diffusion import NUMPY, Arrays, gaussian
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES, run_split, split_batch

SIZES = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(sorted)


@dataclass
class Network:
    """Rows are independent; its answers lie in one place, which the next call overwrites."""

    arrays: Arrays
    sizes: list[int] = field(default_factory=list)
    place: dict[int, Any] = field(default_factory=dict)

    def __call__(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        count = len(feeds["x"])
        assert len(feeds["t"]) == count
        self.sizes.append(count)
        answer = feeds["x"] * 2 + feeds["t"].reshape(-1, 1, 1)
        kept = self.place.setdefault(count, self.arrays.stack([answer])[0])
        kept[:] = answer
        return {"out": kept, "sum": kept.sum(-1)}


@given(st.integers(1, 60), SIZES)
def test_every_row_is_run_once_in_parts_of_known_sizes(count: int, sizes: list[int]) -> None:
    told = split_batch(count, sizes)
    assert sum(taken for taken, _ in told) == count
    assert all(fed in sizes and 0 < taken <= fed for taken, fed in told)
    assert all(taken == sizes[-1] for taken, _ in told[:-1]), "only the last part is filled up"
    assert not [size for size in sizes if told[-1][0] <= size < told[-1][1]], "with no more than it must be"


@pytest.mark.parametrize("arrays", [NUMPY, TorchArrays("cpu")], ids=["numpy", "torch"])
@given(st.integers(1, 30), SIZES)
def test_answers_are_those_of_one_call(arrays: Arrays, count: int, sizes: list[int]) -> None:
    feeds = {"x": arrays.to_device(gaussian(0, 0, (count, 2, 3))), "t": arrays.to_device(gaussian(0, 1, (count,)))}
    network = Network(arrays)
    answers = run_split(feeds, sizes, arrays, network)
    assert set(network.sizes) <= set(sizes)
    wanted = Network(arrays)(feeds)
    for name, answer in answers.items():
        np.testing.assert_array_equal(arrays.to_numpy(answer), arrays.to_numpy(wanted[name]))


def test_what_fits_is_not_copied() -> None:
    feeds = {"x": gaussian(0, 0, (4, 2, 3)), "t": gaussian(0, 1, (4,))}
    assert run_split(feeds, DEFAULT_SIZES, NUMPY, lambda fed: fed) is feeds
