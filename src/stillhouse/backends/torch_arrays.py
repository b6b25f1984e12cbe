"""Operations on torch tensors for sampling, so that latents stay on the denoiser's device until they are decoded.

With NumPy arrays, each call of the denoiser would copy latents, text embeddings and the network's output to a GPU and
back, and wait for the copies. This module imports torch: import it inside functions only.
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
"""Type of `kernels.guided_step.guided_step`, which computes guidance and a step of the sampler in one kernel."""


class KernelUnavailable(UserWarning):
    """The fused Triton kernel cannot be used, so guidance and a sampler step take a dozen kernel launches, not one."""


def arrays_for_device(device: str) -> "TorchArrays":
    """Return the operations on tensors on a device, with the fused kernel of guidance and sampler step where it runs.

    Warns:
        KernelUnavailable: Triton is installed, but the kernel does not run.
    """
    return TorchArrays(device, load_fused_step(device))


def load_fused_step(device: str) -> FusedStep | None:
    """Return the fused kernel of guidance and sampler step, after compiling and running it once on a GPU.

    Return None on the CPU, without Triton, or, with the warning KernelUnavailable, where the kernel does not run.
    """
    if device_kind(device) == CPU or find_spec("triton") is None:
        return None
    try:
        from stillhouse.backends.kernels.guided_step import STEP_WEIGHTS, guided_step  # not at the top: needs Triton

        one = torch.zeros(1, 4, 8, 8, device=device)
        rows = one.new_zeros(1, 2, dtype=torch.int32)
        for past, places in product((None, one), (None, rows)):  # compile every variant before a picture needs it
            output = one if places is not None else torch.cat([one, one])
            guided_step(one, output, places, one.new_zeros(1, len(STEP_WEIGHTS) + 1), past)
    except Exception as error:  # Triton fails in many ways, for example without a C compiler
        told = first_error_line(f"{error}") or type(error).__name__
        warnings.warn(KernelUnavailable(f"guidance and step take a dozen launches, and not one: {told}"), stacklevel=3)
        return None
    return guided_step


@dataclass(frozen=True, slots=True)
class TorchArrays:
    """Operations of `diffusion.arrays.Arrays` for tensors on a torch device.

    Args:
        device: name of the device, such as cpu or cuda:0.
        fused_step: kernel of guidance and sampler step; None: several operations of torch compute the step.
    """

    device: str
    fused_step: FusedStep | None = None

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """Return the values of an array as a tensor of the same dtype on the device."""
        # torch.tensor copies the array, since torch warns about a tensor that shares memory with a read-only array.
        # With non_blocking, `to` does not wait for all work of the GPU, but at most until the driver has copied the
        # values.
        return torch.tensor(array).to(self.device, non_blocking=True)

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors of one shape stacked to one tensor along a new first axis."""
        return torch.stack(tuple(parts))

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Return several tensors joined to one tensor along an existing axis."""
        return torch.cat(tuple(parts), dim=axis)

    def to_numpy(self, array: Tensor | NDArray[Any]) -> NDArray[Any]:
        """Return the values of a tensor as a new NumPy array. A NumPy array is returned as it is."""
        if not isinstance(array, Tensor):
            return array
        read: NDArray[Any] = array.cpu().numpy().copy()
        return read

    def synchronize(self) -> None:
        """Wait until the device has done all work that was launched; launches on a GPU return at once.

        Only the current stream is waited for, not the whole GPU, on which another thread may capture a CUDA graph.
        """
        if device_kind(self.device) != CPU:
            torch.cuda.current_stream(self.device).synchronize()
