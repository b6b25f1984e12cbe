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

# 1 allows fused multiply-adds. This is the default until Triton 3.9, which warns where the variable is not set.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets kernels in Python on the CPU, as set when this process started."""
DTYPES: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Accepted dtypes with Triton's names. All kernels compute in float32."""

_WARM_UP, _REPEATED = 2, 8
"""Milliseconds of warm-up and of measurement for each configuration. Short times suffice, since a kernel takes about
ten microseconds, and long times would add up, since a U-Net has 100 shapes."""

Grid: TypeAlias = Callable[[Mapping[str, Any]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A kernel for one dtype and one shape, as the compiler takes it.

    Args:
        name: of the kernel.
        function: the function under `triton.jit`.
        signature: Triton types by argument; constants are "constexpr".
        constants: their values.
        warps: of one program.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4


def compile_cases(
    kernel: Any, name: str, signature: Mapping[str, str], constants: Mapping[str, Any]
) -> Iterator[CompileCase]:
    """Iterate over the configurations of an autotuned kernel for these constants.

    For float16 these are all configurations that are tuned. For other dtypes, which differ only in how elements are
    read and written, this is the first configuration.

    Args:
        kernel: made by `autotune`.
        name: of the kernel, with the constants that distinguish it.
        signature: Triton types by argument, without constants.
        constants: their values, without those of the configurations.
    """
    prune = kernel.early_config_prune
    configs = prune(kernel.configs, constants) if prune else kernel.configs
    for config in configs if "*fp16" in signature.values() else configs[:1]:
        values = {**constants, **config.kwargs}
        labels = [*(f"{constant} {value}" for constant, value in config.kwargs.items()), f"{config.num_warps} warps"]
        types = {**signature, **dict.fromkeys(values, "constexpr")}
        yield CompileCase(f"{name}, {', '.join(labels)}", kernel.fn, types, values, config.num_warps)


def uses_kernel(*tensors: Tensor) -> bool:
    """Return whether the kernel is launched for these tensors; otherwise the reference is computed.

    Raises:
        UnsupportedPrecision: a dtype that no kernel accepts.
    """
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UnsupportedPrecision(
                f"a fused kernel in {str(tensor.dtype).removeprefix('torch.')}",
                allowed=", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES),
            )
    return INTERPRETED or all(tensor.is_cuda for tensor in tensors)


def autotune(key: Sequence[str], warps: Sequence[int] = (4, 8), prune: Any = None, **choices: Sequence[int]) -> Any:
    """Decorate a kernel as `triton.autotune` does: the fastest configuration is measured for each new key.

    Args:
        key: names of arguments.
        warps: numbers of warps of one program.
        prune: drops configurations, as `early_config_prune` of `triton.autotune`.
        choices: values of constants, by name. Where Triton interprets, the first configuration is used.
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
    """Return the key of sizes that are tuned together: those between the same two powers of two."""
    return count.bit_length()


def to_dense(x: Tensor) -> Tensor:
    """Return the tensor, or a copy whose elements are contiguous in some order of its axes."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def block_grid(count: int) -> Grid:
    """Return a grid with one program for every BLOCK of `count` elements."""
    return lambda meta: (triton.cdiv(count, meta["BLOCK"]),)
