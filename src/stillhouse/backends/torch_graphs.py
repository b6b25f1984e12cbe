"""CUDA graphs: a network's launches recorded once for each kind of inputs, and replayed.

A U-Net launches a thousand kernels for each evaluation, and a fast GPU ends each before the processor has launched the
next one. A replay launches all of them at once. torch is imported here, so this file is imported inside functions only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stillhouse.backends.torch_device import GPU_LOCK

MAX_GRAPHS = 64
"""Recordings that are kept, the one not used for longest is the first to go: six sizes of batches of ten pictures."""
_WARM_UP = 3

Outputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CapturedGraph:
    """One recording: where it reads, where it writes, and how it is run."""

    inputs: Sequence[Tensor]
    outputs: Outputs
    replay: Callable[[], object]


def capture_graph(module: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> CapturedGraph:
    """Record a module on these inputs, on their GPU. The first runs are not recorded: they choose algorithms.

    Args:
        module: takes tensors by position.
        inputs: of this kind.
        pool: where its activations lie, see `new_pool`; other recordings may have theirs there, too.
    """
    with GPU_LOCK, torch.cuda.device_of(inputs[0]):  # type: ignore[no-untyped-call]
        own = [tensor.clone() for tensor in inputs]
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                module(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        outputs = _record(graph, module, own, pool)
    return CapturedGraph(own, outputs, graph.replay)


def _record(graph: Any, module: Callable[..., Any], own: Sequence[Tensor], pool: Any) -> Outputs:
    """What a module answers into this recording. Where that fails the thread is on its stream again, and is told why:
    torch would leave it on the one that it records, and tell that a recording was spoilt."""
    stream, failed = torch.cuda.current_stream(), list[Exception]()
    try:
        # Whatever another thread asks of the GPU meanwhile, to read a picture, is no matter of this recording.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                return as_tuple(module(*own))
            except Exception as error:
                failed.append(error)
                raise
    except Exception as error:
        raise failed[0] if failed else error from None
    finally:
        torch.cuda.set_stream(stream)


def new_pool() -> Any:
    """A memory of the GPU's for recordings that are never replayed at once: what one keeps for itself while it runs,
    another may use after it."""
    return torch.cuda.graph_pool_handle()


@dataclass(slots=True)
class CudaGraphModule:
    """A module that is recorded once for each kind of inputs. Recordings share their memory, so that all of them take
    little more than the largest.

    Args:
        module: takes tensors by position, and gives one or a tuple.
        capture: records it.
        pooled: makes the memory that recordings share.
        most: kinds of inputs, by their shapes and dtypes, that are kept.
    """

    module: Callable[..., Any]
    capture: Callable[[Callable[..., Any], Sequence[Tensor], Any], CapturedGraph] = capture_graph
    make_pool: Callable[[], Any] = new_pool
    max_graphs: int = MAX_GRAPHS
    _graphs: dict[Any, CapturedGraph] = field(default_factory=dict)
    _pool: Any = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        """What the module says; the next call overwrites it, whatever kind that is of."""
        kind = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        captured = self._graphs.pop(kind, None)
        if captured is None:
            while len(self._graphs) >= self.max_graphs:
                del self._graphs[next(iter(self._graphs))]
            if self._pool is None or not self._graphs:  # torch gives up a memory in which no recording lies
                self._pool = self.make_pool()
            captured = self.capture(self.module, inputs, self._pool)
        self._graphs[kind] = captured  # at the end: the one that was not used for longest comes first
        for own, fresh in zip(captured.inputs, inputs, strict=True):
            own.copy_(fresh)
        captured.replay()
        return captured.outputs

    def reset(self) -> None:
        """Record anew at the next call: what the module runs lies elsewhere."""
        self._graphs.clear()


def as_tuple(outputs: Any) -> Outputs:
    """One tensor, or several, as several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
