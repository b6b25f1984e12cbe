"""CUDA graphs: the kernel launches of a network, captured once for each set of input shapes and dtypes, and replayed.

A denoiser launches a thousand kernels per evaluation, and a fast GPU finishes each before the processor has launched
the next. A replay launches all of them at once. This module imports torch: import it inside functions only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stillhouse.backends.torch_device import GPU_LOCK

MAX_GRAPHS = 64
"""Largest number of CUDA graphs of a module, enough for six batch sizes of ten picture sizes."""
_WARM_UP = 3

Outputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CapturedGraph:
    """A captured graph: the tensors that the graph reads, the tensors that it writes, and its replay function."""

    inputs: Sequence[Tensor]
    outputs: Outputs
    replay: Callable[[], object]


def capture_graph(module: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> CapturedGraph:
    """Capture the kernel launches of a module as a CUDA graph, after three warm-up runs, which pick algorithms.

    Args:
        module: takes tensors by position.
        inputs: tensors of the shapes and dtypes to capture.
        pool: memory pool for activations, from `new_pool`; several graphs may share a pool.
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
    """Record one run of a module into a CUDA graph, and return the tensors to which each replay writes the outputs.

    Where the run fails, the module's own exception is raised and the caller's stream is current again. By default,
    torch would raise only that the capture was invalidated, and leave the thread on the capturing stream.

    Args:
        graph: an empty torch.cuda.CUDAGraph.
        module: takes tensors by position.
        own: tensors that the graph will read its inputs from.
        pool: memory pool for activations.
    """
    stream, failed = torch.cuda.current_stream(), list[Exception]()
    try:
        # The mode is thread_local, since the default mode forbids other threads to read a picture from the GPU during
        # the capture.
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
    """Return a memory pool for graphs that are never replayed at the same time."""
    return torch.cuda.graph_pool_handle()


@dataclass(slots=True)
class CudaGraphModule:
    """A module that is captured as a CUDA graph for each set of input shapes and dtypes, and then replayed.

    The graphs share one memory pool, so that all graphs together take little more memory than the largest. Where a new
    graph would exceed `max_graphs`, the least recently used graph is deleted.

    Args:
        module: takes tensors by position, and returns one tensor or a tuple.
        capture: captures the module, see `capture_graph`.
        make_pool: makes the memory pool.
        max_graphs: largest number of graphs.
    """

    module: Callable[..., Any]
    capture: Callable[[Callable[..., Any], Sequence[Tensor], Any], CapturedGraph] = capture_graph
    make_pool: Callable[[], Any] = new_pool
    max_graphs: int = MAX_GRAPHS
    _graphs: dict[Any, CapturedGraph] = field(default_factory=dict)
    _pool: Any = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return the outputs of the module for these inputs. The next call, with any shapes, overwrites the outputs."""
        kind = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        captured = self._graphs.pop(kind, None)
        if captured is None:
            while len(self._graphs) >= self.max_graphs:
                del self._graphs[next(iter(self._graphs))]
            if self._pool is None or not self._graphs:  # a pool that no graph uses cannot be used again: torch frees it
                self._pool = self.make_pool()
            captured = self.capture(self.module, inputs, self._pool)
        self._graphs[kind] = captured  # last in the dictionary, so that the least recently used graph is first
        for own, fresh in zip(captured.inputs, inputs, strict=True):
            own.copy_(fresh)
        captured.replay()
        return captured.outputs

    def reset(self) -> None:
        """Delete all captured graphs, so that the next call captures again.

        Needed when weights or other tensors of the module have new addresses.
        """
        self._graphs.clear()


def as_tuple(outputs: Any) -> Outputs:
    """Return the outputs of a module as a tuple; a single output becomes a tuple of one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
