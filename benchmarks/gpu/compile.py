"""Compile everything first, each part in a process of its own: it takes a processor minutes, and a GPU waits.

`python -m benchmarks.gpu.compile ladder "SD 1.5" float16 1 8` compiles one part, as this file calls itself.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu import kernels, ladder

PLANS = ((torch.float16, 1), (torch.float16, 4), (torch.bfloat16, 1))
"""Dtypes and numbers of pictures of the ladder; the first takes every rung."""


def compile_all(seconds: float) -> None:
    """All parts side by side, for so long at most."""
    started = [subprocess.Popen([sys.executable, "-m", __name__, *part]) for part in _parts()]
    try:
        for process in started:
            process.wait(seconds)
    except subprocess.TimeoutExpired:
        print("compiling takes longer than planned; what is missing is compiled when its turn comes")
    finally:
        for process in started:
            process.kill()
            process.wait()


def rungs_of(plan: tuple[torch.dtype, int]) -> Sequence[ladder.Rung]:
    """Of the ladder, for a dtype and a number of pictures."""
    if plan == PLANS[0]:
        return ladder.RUNGS
    return ladder.SHORT if plan[0] == PLANS[0][0] else [rung for rung in ladder.SHORT if not rung.compiled]


def _parts() -> Iterator[list[str]]:
    for dtype in ("float16", "bfloat16"):
        yield ["kernels", dtype]
    for plan in PLANS:
        for number, rung in enumerate(ladder.RUNGS):
            if rung.compiled and rung in rungs_of(plan):
                yield ["ladder", "SD 1.5", _told(plan[0]), str(plan[1]), str(number)]
    yield ["ladder", "SDXL", "float16", "1", str(len(ladder.RUNGS) - 1)]


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Compile one part."""
    kind, *told = sys.argv[1:]
    if kind == "kernels":
        kernels.compiled("cuda", getattr(torch, told[0]))
    else:
        model, dtype, images, number = told
        ladder.compiled(model, "cuda", getattr(torch, dtype), int(images), ladder.RUNGS[int(number)])


if __name__ == "__main__":
    main()
