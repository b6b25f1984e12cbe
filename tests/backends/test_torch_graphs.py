"""Recordings of a module: one for each kind of inputs, as many as may be, and never an old answer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stillhouse.backends.torch_graphs import Captured, Replayed, together


class Recorder:
    """Records as a GPU does: a replay reads and writes the very memory that it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, module: Callable[..., Any], inputs: Sequence[Tensor]) -> Captured:
        self.recorded += 1
        own = [tensor.clone() for tensor in inputs]
        outputs = together(module(*own))

        def replay() -> None:
            for output, fresh in zip(outputs, together(module(*own)), strict=True):
                output.copy_(fresh)

        return Captured(own, outputs, replay)


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale


def test_each_kind_is_recorded_once_and_answers_anew() -> None:
    recorder = Recorder()
    replayed = Replayed(scaled, recorder)
    for rows in (1, 2, 1, 2, 1):
        x, scale = torch.rand(rows, 3), torch.rand(1)
        (output,) = replayed(x, scale)
        assert torch.equal(output, x * scale)
    assert recorder.recorded == 2


def test_what_is_recorded_is_not_what_was_given() -> None:
    """So that whoever gave it may write to it."""
    replayed = Replayed(scaled, Recorder())
    x = torch.ones(2)
    replayed(x, torch.ones(1))
    x.fill_(5)
    (output,) = replayed(torch.full((2,), 2.0), torch.ones(1))
    assert torch.equal(output, torch.full((2,), 2.0)) and torch.equal(x, torch.full((2,), 5.0))


def test_what_is_forgotten_is_recorded_anew() -> None:
    recorder = Recorder()
    replayed = Replayed(scaled, recorder)
    for _ in range(2):
        replayed(torch.ones(1), torch.ones(1))
        replayed.forget()
    assert recorder.recorded == 2


def test_beyond_as_many_as_may_be_a_module_runs_as_it_is() -> None:
    recorder = Recorder()
    replayed = Replayed(scaled, recorder, most=2)
    for rows in (1, 2, 3, 4):
        (output,) = replayed(torch.ones(rows), torch.full((1,), 2.0))
        assert torch.equal(output, torch.full((rows,), 2.0))
    assert recorder.recorded == 2


def test_dtypes_are_kinds_and_several_outputs_stay_several() -> None:
    recorder = Recorder()
    replayed = Replayed(lambda x: (x, x + 1), recorder)
    assert [one.dtype for one in replayed(torch.ones(2))] == [torch.float32] * 2
    assert [one.dtype for one in replayed(torch.ones(2, dtype=torch.float64))] == [torch.float64] * 2
    assert recorder.recorded == 2
