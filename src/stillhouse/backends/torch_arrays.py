"""Torch's tensors as the arrays of a walk: a picture stays on the device that draws it, from its noise to its end.

Otherwise each evaluation takes latents, texts and the network's output to a GPU and back, and waits for that. torch is
imported here, so this file is imported inside functions only.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.backends.runtime import first_error_line
from stillhouse.backends.torch_device import CPU, device_kind

FusedStep: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""See `kernels.guided_step`."""


class KernelUnavailable(UserWarning):
    """A step is a dozen launches instead of one, because Triton cannot be used."""


def arrays_for_device(device: str) -> "TorchArrays":
    """Tensors on a device, with the kernel of guidance and step where it runs.

    Warns:
        KernelLeftOut: Triton is there, and does not run.
    """
    return TorchArrays(device, load_fused_step(device))


def load_fused_step(device: str) -> FusedStep | None:
    """The kernel of guidance and step, compiled and tried; None on the processor, or where it does not run."""
    if device_kind(device) == CPU or find_spec("triton") is None:
        return None
    try:
        from stillhouse.backends.kernels.guided_step import (  # here and not above: it needs Triton
            STEP_WEIGHTS,
            guided_step,
        )

        one = torch.zeros(1, 4, 8, 8, device=device)
        rows = one.new_zeros(1, 2, dtype=torch.int32)
        for past, places in product((None, one), (None, rows)):  # so that no picture waits until one is compiled
            output = one if places is not None else torch.cat([one, one])
            guided_step(one, output, places, one.new_zeros(1, len(STEP_WEIGHTS) + 1), past)
    except Exception as error:  # without a compiler of C, for one, Triton runs nothing
        told = first_error_line(f"{error}") or type(error).__name__
        warnings.warn(KernelUnavailable(f"guidance and step take a dozen launches, and not one: {told}"), stacklevel=3)
        return None
    return guided_step


@dataclass(frozen=True, slots=True)
class TorchArrays:
    """`diffusion.arrays.Arrays` on a device of torch: cpu, cuda:0."""

    device: str
    fused_step: FusedStep | None = None

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """The same numbers there; of the same dtype."""
        # A copy: torch warns of arrays that may not be written to. By default it would then wait for all that the GPU
        # has been asked for; the driver itself waits at most until it has a copy of its own.
        return torch.tensor(array).to(self.device, non_blocking=True)

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor of several of one shape, along a new first axis."""
        return torch.stack(tuple(parts))

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One tensor of several, along one of their axes."""
        return torch.cat(tuple(parts), dim=axis)

    def to_numpy(self, array: Tensor | NDArray[Any]) -> NDArray[Any]:
        """The same numbers as a NumPy array of its own; NumPy's pass."""
        if not isinstance(array, Tensor):
            return array
        read: NDArray[Any] = array.cpu().numpy().copy()
        return read

    def synchronize(self) -> None:
        """Return when everything that was asked for there is done: launches of a GPU return at once.

        Of the stream that walks are on, and not of the whole GPU, on which another thread may record.
        """
        if device_kind(self.device) != CPU:
            torch.cuda.current_stream(self.device).synchronize()
