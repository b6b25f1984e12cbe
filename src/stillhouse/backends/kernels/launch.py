"""What every kernel shares: which tensors it takes, where it runs, and what it is tuned over."""

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

# Products are added without rounding in between, as until Triton 3.9 by default; that warns where nothing is said.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in Python, on the processor, as this process began."""
DTYPES: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What kernels take, and what Triton calls it. All of them compute in float32."""

_WARM_UP, _REPEATED = 2, 8
"""Milliseconds for each configuration: kernels take some ten microseconds, and a U-Net asks for a hundred shapes."""

Grid: TypeAlias = Callable[[Mapping[str, Any]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A kernel as a compiler sees it, for one dtype and one shape.

    Args:
        name: of the kernel.
        function: the function under `triton.jit`.
        signature: Triton types by argument; constants are named "constexpr".
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
    """A kernel of `tuned` as it is compiled for these constants: for halves by every configuration that is tried then,
    for other dtypes, which differ in how they are read and written only, by the first.

    Args:
        kernel: what `tuned` made.
        name: of the kernel, with what tells its constants from others.
        signature: Triton types by argument, without constants.
        constants: their values, without those that a configuration brings.
    """
    prune = kernel.early_config_prune
    tried = prune(kernel.configs, constants) if prune else kernel.configs
    for one in tried if "*fp16" in signature.values() else tried[:1]:
        every = {**constants, **one.kwargs}
        how = [*(f"{constant} {value}" for constant, value in one.kwargs.items()), f"{one.num_warps} warps"]
        told = {**signature, **dict.fromkeys(every, "constexpr")}
        yield CompileCase(f"{name}, {', '.join(how)}", kernel.fn, told, every, one.num_warps)


def uses_kernel(*tensors: Tensor) -> bool:
    """Whether a kernel is launched for these, and not its reference computed.

    Raises:
        UnsupportedPrecision: a dtype that no kernel has.
    """
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UnsupportedPrecision(
                f"a fused kernel in {str(tensor.dtype).removeprefix('torch.')}",
                allowed=", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES),
            )
    return INTERPRETED or all(tensor.is_cuda for tensor in tensors)


def autotune(key: Sequence[str], warps: Sequence[int] = (4, 8), prune: Any = None, **choices: Sequence[int]) -> Any:
    """Like `triton.autotune`: for each new key the quickest configuration is found, in some milliseconds each.

    Args:
        key: names of arguments.
        warps: of one program.
        prune: leaves some configurations out, see `triton.autotune`'s early_config_prune.
        choices: values by name of a constant. Where Triton interprets, which times nothing, the first of all is taken.
    """
    every = [
        triton.Config(dict(zip(choices, chosen, strict=True)), num_warps=count)
        for *chosen, count in product(*choices.values(), warps)
    ]
    left = {"early_config_prune": prune} if prune else None
    return triton.autotune(every[:1] if INTERPRETED else every, list(key), left, do_bench=_do_bench)


def _do_bench(call: Callable[[], object], quantiles: Sequence[float]) -> Any:
    with GPU_LOCK:
        return triton.testing.do_bench(call, warmup=_WARM_UP, rep=_REPEATED, quantiles=quantiles)


def size_bucket(count: int) -> int:
    """Sizes that are tuned together: those between the same two powers of two."""
    return count.bit_length()


def to_dense(x: Tensor) -> Tensor:
    """The tensor, or a copy whose elements lie one behind the other in some order of its axes."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def block_grid(count: int) -> Grid:
    """A program for every BLOCK of so many elements."""
    return lambda meta: (triton.cdiv(count, meta["BLOCK"]),)
