"""Eight-bit linear layers by torchao: weights are quantised once, inputs at every call.

Only layers of transformer blocks are quantised. They are most of the work of linear layers, and each of their rows, a
token, has its own scale, so no picture depends on another one of its batch. This module imports torch: import it
inside functions only.
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
"""Divisor of the rows and columns that matrix units accept."""


def quantize(module: nn.Module, scheme: str, device: str) -> None:
    """Quantise the linear layers of a network's transformer blocks.

    Args:
        module: on its device already; changed in place.
        scheme: int8, or fp8 (e4m3). Each row of weights and each token of an input has its own scale.
        device: cpu, cuda:0.

    Raises:
        InvalidRequest: a network without transformer blocks.
        UnsupportedPrecision: fp8 on a device without it, or with other weights than bfloat16, which torchao needs.
    """
    if not any(_is_quantizable(part, name) for name, part in module.named_modules()):
        raise InvalidRequest(
            f"quantize is {scheme!r} in a network without transformer blocks that divide by {_MULTIPLE_OF}"
        )
    if scheme == "fp8":
        _check_fp8(module, device)
    from torchao import quantization

    configs: dict[str, Callable[..., Any]] = {
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8": partial(quantization.Float8DynamicActivationFloat8WeightConfig, granularity=quantization.PerRow()),
    }
    # With set_inductor_config, torchao would make torch tune everything that this process compiles for minutes.
    quantization.quantize_(module, configs[scheme](set_inductor_config=False), filter_fn=_is_quantizable)


def is_quantized(part: nn.Module) -> bool:
    """Whether the weights of a layer are quantised."""
    return type(getattr(part, "weight", None)).__module__.startswith("torchao") or any(
        type(value.data).__module__.startswith("torchao") for value in part.parameters(recurse=False)
    )


def _is_quantizable(part: nn.Module, name: str) -> bool:
    divides = isinstance(part, nn.Linear) and not (part.in_features % _MULTIPLE_OF or part.out_features % _MULTIPLE_OF)
    return divides and _BLOCKS in name


def _check_fp8(module: nn.Module, device: str) -> None:
    allowed = f"a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or higher"
    if not device.startswith("cuda"):
        raise UnsupportedPrecision(f"fp8 with device {device}", allowed=allowed)
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise UnsupportedPrecision(f"fp8 on a GPU of {capability[0]}.{capability[1]}", allowed=allowed)
    if (dtype := next(module.parameters()).dtype) != torch.bfloat16:
        raise UnsupportedPrecision(f"fp8 with weights of {str(dtype).removeprefix('torch.')}", allowed="precision bf16")
