"""Compilation of the kernels for GPUs that this machine does not have, by the assembler that Triton includes.

`python -m stillhouse.backends.kernels.compile_targets 90` compiles every kernel for compute capability 9.0, without a
GPU.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stillhouse.backends.kernels import cast, geglu, group_norm, guided_step, layer_norm, silu
from stillhouse.backends.kernels.launch import INTERPRETED, CompileCase
from stillhouse.errors import BackendFailed

CAPABILITIES = (80, 90, 120)
"""Ten times the compute capabilities of Ampere, Hopper and Blackwell GPUs."""
_WARP = 32
KERNELS: Mapping[str, Callable[[], Iterator[CompileCase]]] = MappingProxyType(
    {
        "cast": cast.cases,
        "silu": silu.cases,
        "geglu": geglu.cases,
        "layer_norm": layer_norm.cases,
        "group_norm": group_norm.cases,
        "guided_step": guided_step.cases,
    }
)
"""Functions that yield the cases (dtypes, shape and configuration) to compile, by name of the kernel."""


def compile_kernel(case: CompileCase, capability: int) -> bytes:
    """Return the machine code (a cubin) of a kernel.

    Args:
        case: the kernel, with its dtypes and constants.
        capability: ten times the compute capability, such as 90.

    Raises:
        BackendFailed: Triton interprets in this process, or cannot compile the kernel.
    """
    if INTERPRETED:
        raise BackendFailed(
            "Triton interprets kernels in this process, so none can be compiled",
            fix="start a process without TRITON_INTERPRET",
        )
    # `aligned` tells Triton that each pointer is divisible by 16, because torch aligns tensors to 16 bytes. Compiled
    # kernels can then read several elements at once.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(case.function.arg_names)
        if case.signature[name].startswith("*")
    }
    source = ASTSource(case.function, dict(case.signature), dict(case.constants), aligned)
    try:
        compiled = triton.compile(source, GPUTarget("cuda", capability, _WARP), {"num_warps": case.warps})
    except Exception as error:
        raise BackendFailed(f"{case.name} cannot be compiled for compute capability {capability}: {error}") from error
    code: bytes = compiled.asm["cubin"]
    return code


def main() -> None:
    """Compile all kernels and print the size of each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("capability", type=int, nargs="*", default=CAPABILITIES, help="80, 90, 120, ...")
    parser.add_argument("--kernel", action="append", choices=tuple(KERNELS), help="only this; repeatable")
    arguments = parser.parse_args()
    for capability in arguments.capability:
        for name in arguments.kernel or KERNELS:
            for case in KERNELS[name]():
                sys.stdout.write(f"sm_{capability} {case.name} {len(compile_kernel(case, capability))}\n")


if __name__ == "__main__":
    main()
