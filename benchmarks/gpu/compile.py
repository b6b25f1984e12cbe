"""Compile everything first, each part in a process of its own: it takes a processor minutes, and a GPU waits.

`python -m benchmarks.gpu.compile ladder "SD 1.5" float16 1 SDPA` compiles one part, as this file calls itself.
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
"""Dtypes and numbers of pictures of the ladder; the first takes every rung."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
_THREADS = "4"
_LOW_PRIORITY = 10
"""How much those parts give way to the others that no bar hangs on."""
_TUNED = "*.best_config"
"""Choices that torch's compiler has made while others used the GPU."""


def keep_compiled(folder: Path) -> None:
    """What this process and those that it begins compile is kept there, whoever compiles it: torch moves Triton's own
    folder when it tunes for the first time."""
    os.environ.setdefault(CACHE, str(folder))
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(os.environ[CACHE]) / "triton" / "0"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", _THREADS)


def compile_all(seconds: float) -> None:
    """All parts side by side, for so long at most."""
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
    for chosen in Path(os.environ[CACHE]).rglob(_TUNED):
        chosen.unlink()


def variants_of(plan: tuple[torch.dtype, int]) -> Sequence[ladder.UNetVariant]:
    """Of the ladder, for a dtype and a number of pictures."""
    if plan == PLANS[0]:
        return ladder.UNET_VARIANTS
    return (
        ladder.SHORT_VARIANTS
        if plan[0] == PLANS[0][0]
        else [rung for rung in ladder.SHORT_VARIANTS if not rung.compiled]
    )


def _parts() -> Iterator[list[str]]:
    for model, dtype in (("SDXL", "float16"), ("SD 1.5", "float16"), ("SD 1.5", "bfloat16")):
        yield ["kernels", model, dtype]
    for plan in PLANS:
        for rung in variants_of(plan):
            if rung.compiled or rung.graphs:
                yield ["ladder", "SD 1.5", _dtype_name(plan[0]), str(plan[1]), rung.name]
    yield ["ladder", "SD 1.5", "bfloat16", "1", ladder.FP8.name]
    for rung in (*ladder.SDXL_VARIANTS, ladder.COMPILED):
        if rung.compiled or rung.graphs:
            yield ["ladder", "SDXL", "float16", "1", rung.name]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Compile one part."""
    kind, *told = sys.argv[1:]
    if "bfloat16" in told or "4" in told:
        os.nice(_LOW_PRIORITY)
    if kind == "kernels":
        model, dtype = told
        kernels.compile_kernels("cuda", getattr(torch, dtype), model)
    else:
        model, dtype, images, name = told
        (rung,) = (one for one in (*ladder.UNET_VARIANTS, ladder.FP8) if one.name == name)
        ladder.compile_variant(model, "cuda", getattr(torch, dtype), int(images), rung)


if __name__ == "__main__":
    main()
