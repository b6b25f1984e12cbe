"""Data-parallel training in several processes, which torchrun or `accelerate launch` has started.

Each process draws batches of its own. The training loop averages the gradients itself instead of wrapping the network
in torch's DistributedDataParallel. A loss may therefore call the network in any order and any number of times.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that train one network together, as seen from one of them.

    Args:
        rank: index of this process, from 0 to `count` - 1.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process has rank 0; only this process writes files and reports progress."""
        return self.rank == 0

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor in place by its mean over all processes; block until every process has called this."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        offset = 0
        for tensor in tensors:
            tensor.detach().copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def broadcast_flag(self, value: bool) -> bool:
        """Return in every process the value that the main process passes; block until every process has called this."""
        if self.count == 1:
            return value
        flag = torch.tensor([float(value and self.is_main_process)], device=_device())
        torch.distributed.all_reduce(flag)
        return bool(flag.item())


def current_process_group() -> ProcessGroup:
    """Join the training processes that a launcher such as torchrun has started, and return their group.

    Without a launcher, return a group of this process alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup()
    from accelerate import PartialState  # type: ignore[import-untyped]

    state = PartialState(cpu=not torch.cuda.is_available())
    return ProcessGroup(state.process_index, state.num_processes)


def _device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
