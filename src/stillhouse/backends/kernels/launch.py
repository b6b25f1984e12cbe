"""Shared parts of the kernels: accepted tensors, autotuning, grids, and cases to compile."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor

from stillhouse.backends.torch_device import GPU_LOCK
from stillhouse.errors import UnsupportedPrecision

# The value 1 lets Triton fuse multiplications with additions, as older versions do by default. The variable is set
# because Triton 3.9 warns where it is not set.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets kernels in Python on the CPU, as the environment said when this module was imported."""
DTYPES: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Dtypes that the kernels accept, with Triton's names. All kernels compute in float32."""

_WARM_UP, _REPEATED = 2, 8
"""Milliseconds of warm-up and of measurement for each configuration. Short times suffice, since a kernel takes about
ten microseconds, and long times would add up, since a U-Net has 100 shapes."""

Grid: TypeAlias = Callable[[Mapping[str, Any]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A kernel for one dtype and one shape, as the compiler takes it.

    Args:
        name: name of the kernel and its variant, for messages.
        function: the function under `triton.jit`.
        signature: Triton type of each argument by name; the type of a constant is "constexpr".
        constants: value of each constant by name.
        warps: number of warps of one program.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4


def compile_cases(
    kernel: Any, name: str, signature: Mapping[str, str], constants: Mapping[str, Any]
) -> Iterator[CompileCase]:
    """Yield a case to compile for each configuration of an autotuned kernel, with the given types and constants.

    For float16 there is a case for each configuration that is tuned. For other dtypes, which differ only in how
    elements are read and written, there is only the first configuration.

    Args:
        name: name of the kernel, with the constants that distinguish its variants.
        signature: Triton type of each argument by name, without constants.
        constants: value of each constant by name, without the constants that the configurations set.
    """
    prune = kernel.early_config_prune
    configs = prune(kernel.configs, constants) if prune else kernel.configs
    for config in configs if "*fp16" in signature.values() else configs[:1]:
        values = {**constants, **config.kwargs}
        labels = [*(f"{constant} {value}" for constant, value in config.kwargs.items()), f"{config.num_warps} warps"]
        types = {**signature, **dict.fromkeys(values, "constexpr")}
        yield CompileCase(f"{name}, {', '.join(labels)}", kernel.fn, types, values, config.num_warps)


def uses_kernel(*tensors: Tensor) -> bool:
    """Return whether a kernel can run on these tensors: all lie on a GPU, or Triton interprets kernels on the CPU.

    Where the result is False, callers compute the kernel's reference in plain torch.

    Raises:
        UnsupportedPrecision: a tensor has a dtype that no kernel accepts.
    """
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UnsupportedPrecision(
                f"a fused kernel got a tensor of {str(tensor.dtype).removeprefix('torch.')}",
                allowed=", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES),
            )
    return INTERPRETED or all(tensor.is_cuda for tensor in tensors)


def autotune(key: Sequence[str], warps: Sequence[int] = (4, 8), prune: Any = None, **choices: Sequence[int]) -> Any:
    """Return a decorator of a kernel that picks the fastest configuration by measuring, as `triton.autotune` does.

    Configurations are measured again for each new combination of the values of the arguments in `key`. Where Triton
    interprets, the first configuration is used.

    Args:
        key: names of arguments of the kernel.
        warps: numbers of warps of one program to try.
        prune: function that drops configurations, as `early_config_prune` of `triton.autotune`; None: all are tried.
        choices: values to try of each constant, by name.
    """
    configs = [
        triton.Config(dict(zip(choices, values, strict=True)), num_warps=count)
        for *values, count in product(*choices.values(), warps)
    ]
    pruning = {"early_config_prune": prune} if prune else None
    return triton.autotune(configs[:1] if INTERPRETED else configs, list(key), pruning, do_bench=_do_bench)


def _do_bench(call: Callable[[], object], quantiles: Sequence[float]) -> Any:
    with GPU_LOCK:
        return triton.testing.do_bench(call, warmup=_WARM_UP, rep=_REPEATED, quantiles=quantiles)


def size_bucket(count: int) -> int:
    """Return a key for tuning a kernel at the size `count`; sizes between the same two powers of two have one key."""
    return count.bit_length()


def to_dense(x: Tensor) -> Tensor:
    """Return a tensor itself where it is contiguous or channels last, and otherwise a contiguous copy."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def block_grid(count: int) -> Grid:
    """Return the grid of a kernel: one program for each BLOCK of `count` elements; autotuning chooses BLOCK."""
    return lambda meta: (triton.cdiv(count, meta["BLOCK"]),)
