"""Eight-bit linear layers by torchao: weights are quantised once, inputs at every call.

Only linear layers of transformer blocks are quantised; they do most of the work of all linear layers. Each row of their
inputs, a token, has its own scale, so a picture does not depend on the other pictures of its batch. This module imports
torch: import it inside functions only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from stillhouse.errors import InvalidRequest, UnsupportedPrecision
from stillhouse.gpu import FP8_CAPABILITY

_BLOCKS = "transformer_blocks."
_MULTIPLE_OF = 16
"""Matrix units accept only numbers of rows and columns that are multiples of this number."""


def quantize(module: nn.Module, scheme: str, device: str) -> None:
    """Quantise the linear layers of a network's transformer blocks, in place.

    Args:
        module: the network, which lies on `device` already; changed in place.
        scheme: int8, or fp8 (e4m3). Each row of weights and each token of an input has its own scale.
        device: name of the module's device, such as cpu or cuda:0.

    Raises:
        InvalidRequest: no linear layer can be quantised.
        UnsupportedPrecision: the device has no fp8, or, with fp8, weights are not bfloat16, which torchao requires.
    """
    if not any(_is_quantizable(part, name) for name, part in module.named_modules()):
        raise InvalidRequest(
            f"quantize is {scheme!r} in a network without transformer blocks whose sizes divide by {_MULTIPLE_OF}",
            allowed="none",
        )
    if scheme == "fp8":
        _check_fp8(module, device)
    from torchao import quantization

    configs: dict[str, Callable[..., Any]] = {
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8": partial(quantization.Float8DynamicActivationFloat8WeightConfig, granularity=quantization.PerRow()),
    }
    # set_inductor_config is False, since torchao would otherwise switch on tuning, which takes minutes, for everything
    # that this process compiles.
    quantization.quantize_(module, configs[scheme](set_inductor_config=False), filter_fn=_is_quantizable)


def is_quantized(part: nn.Module) -> bool:
    """Return whether torchao has quantised the weights of a layer."""
    return type(getattr(part, "weight", None)).__module__.startswith("torchao") or any(
        type(value.data).__module__.startswith("torchao") for value in part.parameters(recurse=False)
    )


def _is_quantizable(part: nn.Module, name: str) -> bool:
    divides = isinstance(part, nn.Linear) and not (part.in_features % _MULTIPLE_OF or part.out_features % _MULTIPLE_OF)
    return divides and _BLOCKS in name


def _check_fp8(module: nn.Module, device: str) -> None:
    gpu_with_fp8 = f"a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or higher"
    if not device.startswith("cuda"):
        raise UnsupportedPrecision(f"fp8 was requested with device {device}", allowed=gpu_with_fp8)
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise UnsupportedPrecision(
            f"fp8 was requested on a GPU of compute capability {capability[0]}.{capability[1]}", allowed=gpu_with_fp8
        )
    if (dtype := next(module.parameters()).dtype) != torch.bfloat16:
        raise UnsupportedPrecision(
            f"fp8 was requested for weights of {str(dtype).removeprefix('torch.')}", allowed="precision bf16"
        )
