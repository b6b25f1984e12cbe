"""A step of a sampler in one pass: guidance, the clean picture, where to aim, and the move.

Of a network's two rows for a picture, without the prompt and with it, and of the picture z itself:

    guided = u + scale * (c - u)                            (arXiv 2207.12598, equation 6)
    clean  = of_z * z + of_output * guided                  see `diffusion.prediction`
    aim    = clean + reach * (clean - past)                 DPM-Solver++ 2M; reach is 0 elsewhere
    moved  = kept * z + gained * aim                        see `diffusion.samplers`

Eager torch reads and writes a picture a dozen times for it.

Bytes that must move: two rows and z read, the moved picture and the clean one written; where the last clean picture
counts, that read as well.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import DTYPES, CompileCase, autotune, compile_cases, size_bucket, uses_kernel
from stillhouse.errors import InvalidRequest

STEP_WEIGHTS = ("scale", "of_z", "of_output", "reach", "kept", "gained")
"""The columns of what each picture is told."""


@autotune(["bucket", "PAST", "PAIRED"], warps=(1, 4), BLOCK=(256, 1024))
@triton.jit
def _guided_step(
    z,
    output,
    past,
    rows,
    weights,
    moved,
    clean,
    size,
    bucket,
    PAST: tl.constexpr,  # noqa: N803
    PAIRED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    picture = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    # First what others hang on, then what hangs on nothing, so that all of it is under way at once.
    if PAIRED:
        without = 2 * picture
        prompted = without + 1
    else:
        without = tl.load(rows + 2 * picture).to(tl.int64)
        prompted = tl.load(rows + 2 * picture + 1).to(tl.int64)
    told = weights + 6 * picture
    here = tl.load(z + picture * size + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(told)
    of_z = tl.load(told + 1)
    of_output = tl.load(told + 2)
    reach = tl.load(told + 3)
    kept = tl.load(told + 4)
    gained = tl.load(told + 5)
    u = tl.load(output + without * size + at, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(output + prompted * size + at, mask=inside, other=0.0).to(tl.float32)
    # Said out loud, because a compiler may add and multiply at once in one variant and not in the other, and a picture
    # is the same whoever is beside it.
    guided = tl.fma(scale, c - u, u)
    seen = tl.fma(of_output, guided, of_z * here)
    aim = seen
    if PAST:
        before = tl.load(past + picture * size + at, mask=inside, other=0.0).to(tl.float32)
        aim = tl.fma(reach, seen - before, seen)
    tl.store(clean + picture * size + at, seen, mask=inside)
    tl.store(moved + picture * size + at, tl.fma(gained, aim, kept * here), mask=inside)


@torch.library.custom_op("stillhouse::guided_step", mutates_args=())
def guided_step(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move each picture of a batch by one evaluation.

    Args:
        z: pictures, float16, bfloat16 or float32, [P, C, h, w].
        output: of the network, [R, C, h, w].
        rows: int32 [P, 2]: each picture's row without its prompt, and the one with it; the same one twice where it is
            not guided. None: all are guided, and their rows are pairs, one behind the other.
        weights: float32 [P, 6], see `WEIGHTS`.
        past: the clean pictures of the evaluation before, as z; None where none counts.

    Returns:
        the moved pictures and the clean ones, as z.

    Raises:
        InvalidRequest: shapes that do not fit each other.
        UnsupportedPrecision: another dtype.
    """
    _check(z, output, rows, weights, past)
    z, output, weights = (tensor.contiguous() for tensor in (z, output, weights))
    if not uses_kernel(z, output, *(() if past is None else (past,))):
        return reference(z, output, rows, weights, past)
    moved, clean = torch.empty_like(z), torch.empty_like(z)
    size = z[0].numel() if len(z) else 0
    if size:
        before = z if past is None else past.contiguous()
        places = weights if rows is None else rows.contiguous()
        told = (size, size_bucket(size * len(z)), past is not None, rows is None)
        with torch.cuda.device_of(z):
            _guided_step[lambda meta: (triton.cdiv(size, meta["BLOCK"]), len(z))](
                z, output, before, places, weights, moved, clean, *told
            )
    return moved, clean


@guided_step.register_fake
def _(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(z, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


def reference(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    scale, of_z, of_output, reach, kept, gained = (column.view(-1, 1, 1, 1) for column in weights.to(z).unbind(1))
    both = (output[::2], output[1::2]) if rows is None else (output[row.long()] for row in rows.unbind(1))
    without, prompted = (one.to(z) for one in both)
    clean = of_z * z + of_output * (without + scale * (prompted - without))
    aim = clean if past is None else clean + reach * (clean - past)
    return kept * z + gained * aim, clean


def bytes_moved(z: Tensor, output: Tensor, past: Tensor | None = None) -> int:
    """See the head of this file."""
    pictures = 3 if past is None else 4
    return pictures * z.numel() * z.element_size() + output.numel() * output.element_size()


def cases() -> Iterator[CompileCase]:
    """With and without a past in each dtype, of rows that are pairs and of any."""
    for name in DTYPES.values():
        for past, paired in product((False, True), repeat=2):
            tensors = dict.fromkeys(("z", "output", "past", "moved", "clean"), f"*{name}")
            others = {"rows": "*i32", "weights": "*fp32", "size": "i32", "bucket": "i32"}
            called = f"guided_step {name}{' past' if past else ''}{' paired' if paired else ''}"
            yield from compile_cases(_guided_step, called, {**tensors, **others}, {"PAST": past, "PAIRED": paired})


def _check(z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, past: Tensor | None) -> None:
    if z.ndim != 4 or output.ndim != 4 or output.shape[1:] != z.shape[1:]:
        raise InvalidRequest(f"pictures of {list(z.shape)} and outputs of {list(output.shape)}", allowed="one size")
    if rows is None and len(output) != 2 * len(z):
        raise InvalidRequest(f"{len(output)} rows of pairs for {len(z)} pictures", allowed=f"{2 * len(z)}, or `rows`")
    is_told = rows is None or (rows.shape == (len(z), 2) and rows.dtype == torch.int32)
    if not is_told or weights.shape != (len(z), len(STEP_WEIGHTS)):
        told = "pairs" if rows is None else f"{list(rows.shape)}"
        raise InvalidRequest(
            f"rows {told} and weights {list(weights.shape)} for {len(z)} pictures",
            allowed=f"int32 [{len(z)}, 2] and [{len(z)}, {len(STEP_WEIGHTS)}]",
        )
    if past is not None and past.shape != z.shape:
        raise InvalidRequest(f"a past of {list(past.shape)} for {list(z.shape)}", allowed="the same shape")
