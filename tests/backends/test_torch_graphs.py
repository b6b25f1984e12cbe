"""Recordings of a module: one for each kind of inputs, as many as may be, and never an old answer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stillhouse.backends.torch_graphs import CapturedGraph, CudaGraphModule, as_tuple


class Recorder:
    """Records as a GPU does: a replay reads and writes the very memory that it was recorded with."""

    def __init__(self) -> None:
        self.pools: list[Any] = []

    @property
    def recorded(self) -> int:
        return len(self.pools)

    def __call__(self, module: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> CapturedGraph:
        self.pools.append(pool)
        own = [tensor.clone() for tensor in inputs]
        outputs = as_tuple(module(*own))

        def replay() -> None:
            for output, fresh in zip(outputs, as_tuple(module(*own)), strict=True):
                output.copy_(fresh)

        return CapturedGraph(own, outputs, replay)


def make_module(module: Callable[..., Any], recorder: Recorder, **options: Any) -> CudaGraphModule:
    return CudaGraphModule(module, recorder, object, **options)


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale


def test_each_kind_is_recorded_once_and_answers_anew() -> None:
    recorder = Recorder()
    replayed = make_module(scaled, recorder)
    for rows in (1, 2, 1, 2, 1):
        x, scale = torch.rand(rows, 3), torch.rand(1)
        (output,) = replayed(x, scale)
        assert torch.equal(output, x * scale)
    assert recorder.recorded == 2


def test_what_is_recorded_is_not_what_was_given() -> None:
    """So that whoever gave it may write to it."""
    replayed = make_module(scaled, Recorder())
    x = torch.ones(2)
    replayed(x, torch.ones(1))
    x.fill_(5)
    (output,) = replayed(torch.full((2,), 2.0), torch.ones(1))
    assert torch.equal(output, torch.full((2,), 2.0)) and torch.equal(x, torch.full((2,), 5.0))


def test_what_is_forgotten_is_recorded_anew() -> None:
    recorder = Recorder()
    replayed = make_module(scaled, recorder)
    for _ in range(2):
        replayed(torch.ones(1), torch.ones(1))
        replayed.reset()
    assert recorder.recorded == 2


def test_of_more_than_are_kept_the_one_not_used_for_longest_is_recorded_anew() -> None:
    recorder = Recorder()
    replayed = make_module(scaled, recorder, max_graphs=2)
    for rows, recorded in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4), (3, 5)):
        (output,) = replayed(torch.ones(rows), torch.full((1,), 2.0))
        assert torch.equal(output, torch.full((rows,), 2.0))
        assert recorder.recorded == recorded


def test_all_recordings_lie_in_one_memory_that_is_made_when_it_is_needed() -> None:
    pools: list[object] = []

    def pool() -> object:
        pools.append(object())
        return pools[-1]

    recorder = Recorder()
    replayed = CudaGraphModule(scaled, recorder, make_pool=pool)
    assert not pools
    for rows in (1, 2):
        replayed(torch.ones(rows), torch.ones(1))
    assert recorder.pools == pools * 2 and len(pools) == 1
    replayed.reset()
    replayed(torch.ones(1), torch.ones(1))
    assert recorder.pools[2] is pools[1], "torch gives a memory up in which nothing lies"


def test_dtypes_are_kinds_and_several_outputs_stay_several() -> None:
    recorder = Recorder()
    replayed = make_module(lambda x: (x, x + 1), recorder)
    assert [one.dtype for one in replayed(torch.ones(2))] == [torch.float32] * 2
    assert [one.dtype for one in replayed(torch.ones(2, dtype=torch.float64))] == [torch.float64] * 2
    assert recorder.recorded == 2
