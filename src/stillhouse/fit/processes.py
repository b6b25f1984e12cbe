"""Several processes that learn the same, each from batches of its own, as torchrun or `accelerate launch` starts them.

Gradients are averaged by hand, not by a wrapper around the network: a stage may then call its network as it likes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Which of them this one is.

    Args:
        rank: from 0; the first one writes and tells.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes and tells."""
        return self.rank == 0

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.count == 1 or not tensors:
            return
        together = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(together)
        together /= self.count
        begin = 0
        for tensor in tensors:
            tensor.detach().copy_(together[begin : begin + tensor.numel()].view_as(tensor))
            begin += tensor.numel()

    def broadcast_flag(self, value: bool) -> bool:
        """What the first one says."""
        if self.count == 1:
            return value
        told = torch.tensor([float(value and self.is_main_process)], device=_device())
        torch.distributed.all_reduce(told)
        return bool(told.item())


def current_process_group() -> ProcessGroup:
    """The processes that were started together, of which this is one; or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup()
    from accelerate import PartialState  # type: ignore[import-untyped]

    state = PartialState(cpu=not torch.cuda.is_available())
    return ProcessGroup(state.process_index, state.num_processes)


def _device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
