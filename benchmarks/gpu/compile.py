"""Compilation of all parts before measuring, each in its own process: it takes minutes, in which the GPU idles.

`python -m benchmarks.gpu.compile ladder "SD 1.5" float16 1 SDPA` compiles one part, as this module calls itself.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

import torch

from benchmarks.gpu import kernels, ladder

PLANS = ((torch.float16, 1), (torch.float16, 4), (torch.bfloat16, 1), (torch.bfloat16, 4))
"""Dtypes and numbers of pictures of the ladder. The first one measures every variant."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
_THREADS = "4"
_LOW_PRIORITY = 10
"""Niceness of parts whose results matter less."""
_TUNED = "*.best_config"
"""Choices that torch's compiler made while other processes used the GPU."""


def keep_compiled(folder: Path) -> None:
    """Make this process and its children keep compiled code in a folder: torch moves Triton's folder when it first
    tunes.
    """
    os.environ.setdefault(CACHE, str(folder))
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(os.environ[CACHE]) / "triton" / "0"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", _THREADS)


def compile_all(seconds: float) -> None:
    """Compile all parts at the same time, within so many seconds."""
    end = monotonic() + seconds
    parts = list(_parts())
    started = [subprocess.Popen([sys.executable, "-m", __name__, *part]) for part in parts]
    for process, part in zip(started, parts, strict=True):
        try:
            code = process.wait(max(0.1, end - monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            print(f"not compiled beforehand: {' '.join(part)} (exit code {code})")
    for choice in Path(os.environ[CACHE]).rglob(_TUNED):
        choice.unlink()


def variants_of(plan: tuple[torch.dtype, int]) -> Sequence[ladder.UNetVariant]:
    """Return the variants of the ladder for a dtype and a number of pictures."""
    if plan == PLANS[0]:
        return ladder.UNET_VARIANTS
    return (
        ladder.SHORT_VARIANTS
        if plan[0] == PLANS[0][0]
        else [variant for variant in ladder.SHORT_VARIANTS if not variant.compiled]
    )


def _parts() -> Iterator[list[str]]:
    for model, dtype in (("SDXL", "float16"), ("SD 1.5", "float16"), ("SD 1.5", "bfloat16")):
        yield ["kernels", model, dtype]
    for plan in PLANS:
        for variant in variants_of(plan):
            if variant.compiled or variant.graphs:
                yield ["ladder", "SD 1.5", _dtype_name(plan[0]), str(plan[1]), variant.name]
    yield ["ladder", "SD 1.5", "bfloat16", "1", ladder.FP8.name]
    for variant in (*ladder.SDXL_VARIANTS, ladder.COMPILED):
        if variant.compiled or variant.graphs:
            yield ["ladder", "SDXL", "float16", "1", variant.name]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Compile one part."""
    kind, *arguments = sys.argv[1:]
    if "bfloat16" in arguments or "4" in arguments:
        os.nice(_LOW_PRIORITY)
    if kind == "kernels":
        model, dtype = arguments
        kernels.compile_kernels("cuda", getattr(torch, dtype), model)
    else:
        model, dtype, images, name = arguments
        (variant,) = (variant for variant in (*ladder.UNET_VARIANTS, ladder.FP8) if variant.name == name)
        ladder.compile_variant(model, "cuda", getattr(torch, dtype), int(images), variant)


if __name__ == "__main__":
    main()
