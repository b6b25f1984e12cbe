"""Torch's tensors as the arrays of a walk: a picture stays on the device that draws it, from its noise to its end.

Otherwise each evaluation takes latents, texts and the network's output to a GPU and back, and waits for that. torch is
imported here, so this file is imported inside functions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.backends.torch_device import CPU, kind_of


@dataclass(frozen=True, slots=True)
class TorchArrays:
    """`diffusion.arrays.Arrays` on a device of torch: cpu, cuda:0."""

    device: str

    def placed(self, array: NDArray[Any]) -> Tensor:
        """The same numbers there; of the same dtype."""
        # A copy: torch warns of arrays that may not be written to. By default it would then wait for all that the GPU
        # has been asked for; the driver itself waits at most until it has a copy of its own.
        return torch.tensor(array).to(self.device, non_blocking=True)

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor of several of one shape, along a new first axis."""
        return torch.stack(tuple(parts))

    def joined(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One tensor of several, along one of their axes."""
        return torch.cat(tuple(parts), dim=axis)

    def read(self, array: Tensor | NDArray[Any]) -> NDArray[Any]:
        """The same numbers as a NumPy array of its own; NumPy's pass."""
        if not isinstance(array, Tensor):
            return array
        read: NDArray[Any] = array.cpu().numpy().copy()
        return read

    def settle(self) -> None:
        """Return when everything that was asked for there is done: launches of a GPU return at once."""
        if kind_of(self.device) != CPU:
            torch.cuda.synchronize(self.device)
