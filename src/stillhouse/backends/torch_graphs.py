"""CUDA graphs: a network's launches recorded once for each kind of inputs, and replayed.

A U-Net launches a thousand kernels for each evaluation, and a fast GPU ends each before the processor has launched the
next one. A replay launches all of them at once. torch is imported here, so this file is imported inside functions only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

MOST = 8
"""Kinds of inputs that are captured: each keeps its activations. Others run as they are."""
_WARM_UP = 3

Outputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """One recording: where it reads, where it writes, and how it is run."""

    inputs: Sequence[Tensor]
    outputs: Outputs
    replay: Callable[[], object]


def capture(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Captured:
    """Record a module on these inputs, on their GPU. The first runs are not recorded: they choose algorithms."""
    own = [tensor.clone() for tensor in inputs]
    with torch.cuda.device_of(own[0]):  # type: ignore[no-untyped-call]
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                module(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Whatever another thread asks of the GPU meanwhile, to decode a picture, is no matter of this recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = together(module(*own))
    return Captured(own, outputs, graph.replay)


@dataclass(slots=True)
class Replayed:
    """A module that is recorded once for each kind of inputs.

    Args:
        module: takes tensors by position, and gives one or a tuple.
        capture: records it.
        most: kinds of inputs, by their shapes and dtypes.
    """

    module: Callable[..., Any]
    capture: Callable[[Callable[..., Any], Sequence[Tensor]], Captured] = capture
    most: int = MOST
    _kinds: dict[Any, Captured] = field(default_factory=dict)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """What the module says; the next call overwrites it."""
        kind = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        captured = self._kinds.get(kind)
        if captured is None:
            if len(self._kinds) == self.most:
                return together(self.module(*inputs))
            captured = self._kinds[kind] = self.capture(self.module, inputs)
        for own, fresh in zip(captured.inputs, inputs, strict=True):
            own.copy_(fresh)
        captured.replay()
        return captured.outputs

    def forget(self) -> None:
        """Record anew at the next call: what the module runs lies elsewhere."""
        self._kinds.clear()


def together(outputs: Any) -> Outputs:
    """One tensor, or several, as several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
