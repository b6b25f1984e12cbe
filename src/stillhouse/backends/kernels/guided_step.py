"""A step of a sampler in one kernel: guidance, the denoised picture, extrapolation, and the step.

A branch is one set of conditioning inputs of a picture, such as its prompt or its negative prompt. From the network's
outputs for a picture's branches (b for the base branch) and the picture's latents z, the kernel computes:

    guided   = b + sum of weight * (branch - b)                   see `diffusion.guidance`
    denoised = of_z * z + of_output * guided                      see `diffusion.prediction`
    x0       = denoised + extrapolation * (denoised - previous)   DPM-Solver++ 2M; extrapolation is 0 elsewhere
    stepped  = z_weight * z + x0_weight * x0                      see `diffusion.samplers`

Eager torch reads and writes a picture a dozen times for one step.

Bytes that must move: the network's outputs and z are read, the stepped and the denoised picture are written. Where the
sampler extrapolates, the previous denoised picture is read as well.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import DTYPES, CompileCase, autotune, compile_cases, size_bucket, uses_kernel
from stillhouse.errors import InvalidRequest

STEP_WEIGHTS = ("of_z", "of_output", "extrapolation", "z_weight", "x0_weight")
"""Names of the first five columns of `weights` in `guided_step`; the weight of each difference of branches follows."""


@autotune(["bucket", "PREVIOUS", "PAIRED", "TERMS"], warps=(1, 4), BLOCK=(256, 1024))
@triton.jit
def _guided_step(
    z,
    output,
    previous,
    rows,
    weights,
    stepped,
    denoised,
    size,
    bucket,
    PREVIOUS: tl.constexpr,  # noqa: N803
    PAIRED: tl.constexpr,  # noqa: N803
    TERMS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    picture = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    # `base_row` is loaded first, because the address of `base` below depends on it. The loads in between do not wait
    # for `base_row`.
    base_row = 2 * picture if PAIRED else tl.load(rows + (1 + TERMS) * picture).to(tl.int64)
    table = weights + (5 + TERMS) * picture
    here = tl.load(z + picture * size + at, mask=inside, other=0.0).to(tl.float32)
    of_z = tl.load(table)
    of_output = tl.load(table + 1)
    extrapolation = tl.load(table + 2)
    z_weight = tl.load(table + 3)
    x0_weight = tl.load(table + 4)
    base = tl.load(output + base_row * size + at, mask=inside, other=0.0).to(tl.float32)
    guided = base
    # The loop adds the guidance terms. tl.fma fuses each multiplication with its addition: otherwise the compiler might
    # fuse in one variant of the kernel only, and a picture would depend on its batch. A term of weight 0, which the
    # picture lacks, is skipped.
    for term in tl.static_range(TERMS):
        row = base_row + 1 if PAIRED else tl.load(rows + (1 + TERMS) * picture + 1 + term).to(tl.int64)
        weight = tl.load(table + 5 + term)
        branch = tl.load(output + row * size + at, mask=inside, other=0.0).to(tl.float32)
        added = tl.fma(weight, branch - base, guided)
        guided = added if term == 0 else tl.where(weight != 0.0, added, guided)
    seen = tl.fma(of_output, guided, of_z * here)
    x0 = seen
    if PREVIOUS:
        before = tl.load(previous + picture * size + at, mask=inside, other=0.0).to(tl.float32)
        x0 = tl.fma(extrapolation, seen - before, seen)
    tl.store(denoised + picture * size + at, seen, mask=inside)
    tl.store(stepped + picture * size + at, tl.fma(x0_weight, x0, z_weight * here), mask=inside)


@torch.library.custom_op("stillhouse::guided_step", mutates_args=())
def guided_step(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, previous: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each picture of a batch after a sampler's step, and its denoised picture, from one output of the network.

    Args:
        z: latents of P pictures, float16, bfloat16 or float32, [P, C, h, w].
        output: output of the network, [R, C, h, w]. Each row is for one branch (set of conditioning inputs) of a
            picture.
        rows: int32 [P, 1 + T], where T is the largest number of differences of branches of a picture. Each line has the
            index in `output` of the picture's base branch, then of the branch of each difference. A picture that has
            fewer differences repeats its base, with weight 0. None: picture i has the rows 2 * i (base) and 2 * i + 1.
        weights: float32 [P, 5 + T]: the columns of `STEP_WEIGHTS`, then the weight of each difference.
        previous: denoised pictures of the step before, with the shape of z; None where the sampler does not use them.

    Returns:
        The stepped pictures and the denoised pictures, both with shape and dtype of z.

    Raises:
        InvalidRequest: the shapes do not fit each other.
        UnsupportedPrecision: a tensor has another dtype.
    """
    _check(z, output, rows, weights, previous)
    z, output, weights = (tensor.contiguous() for tensor in (z, output, weights))
    if not uses_kernel(z, output, *(() if previous is None else (previous,))):
        return reference(z, output, rows, weights, previous)
    stepped, denoised = torch.empty_like(z), torch.empty_like(z)
    size = z[0].numel() if len(z) else 0
    if size:
        before = z if previous is None else previous.contiguous()
        table = weights if rows is None else rows.contiguous()
        terms = weights.shape[1] - len(STEP_WEIGHTS)
        constants = (size, size_bucket(size * len(z)), previous is not None, rows is None, terms)
        with torch.cuda.device_of(z):
            _guided_step[lambda meta: (triton.cdiv(size, meta["BLOCK"]), len(z))](
                z, output, before, table, weights, stepped, denoised, *constants
            )
    return stepped, denoised


@guided_step.register_fake
def _(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, previous: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(z, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


def reference(
    z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, previous: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the result of `guided_step`, computed in plain torch."""
    columns = [column.view(-1, 1, 1, 1) for column in weights.to(z).unbind(1)]
    of_z, of_output, extrapolation, z_weight, x0_weight = columns[: len(STEP_WEIGHTS)]
    places = (slice(0, None, 2), slice(1, None, 2)) if rows is None else [row.long() for row in rows.unbind(1)]
    base, *branches = (output[place].to(z) for place in places)
    guided = base
    for term, (branch, weight) in enumerate(zip(branches, columns[len(STEP_WEIGHTS) :], strict=True)):
        added = guided + weight * (branch - base)
        guided = torch.where(weight != 0, added, guided) if term else added
    denoised = of_z * z + of_output * guided
    x0 = denoised if previous is None else denoised + extrapolation * (denoised - previous)
    return z_weight * z + x0_weight * x0, denoised


def bytes_moved(z: Tensor, output: Tensor, previous: Tensor | None = None) -> int:
    """Return the least number of bytes that `guided_step` must read and write for these tensors."""
    pictures = 3 if previous is None else 4
    return pictures * z.numel() * z.element_size() + output.numel() * output.element_size()


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile: for each dtype, with and without a previous denoised picture.

    Each case has three variants of the rows that a picture has in the network's output: two adjacent rows, two rows at
    any indices, and three rows at any indices.
    """
    for name in DTYPES.values():
        for previous, (paired, terms) in product((False, True), ((True, 1), (False, 1), (False, 2))):
            tensors = dict.fromkeys(("z", "output", "previous", "stepped", "denoised"), f"*{name}")
            others = {"rows": "*i32", "weights": "*fp32", "size": "i32", "bucket": "i32"}
            rows = " paired" if paired else "" if terms == 1 else " three rows"
            called = f"guided_step {name}{' previous' if previous else ''}{rows}"
            constants = {"PREVIOUS": previous, "PAIRED": paired, "TERMS": terms}
            yield from compile_cases(_guided_step, called, {**tensors, **others}, constants)


def _check(z: Tensor, output: Tensor, rows: Tensor | None, weights: Tensor, previous: Tensor | None) -> None:
    if z.ndim != 4 or output.ndim != 4 or output.shape[1:] != z.shape[1:]:
        raise InvalidRequest(
            f"latents {list(z.shape)} and outputs {list(output.shape)} are not [pictures, C, h, w] and [rows, C, h, w]",
            allowed="four axes each, and one size [C, h, w]",
        )
    if rows is None and len(output) != 2 * len(z):
        allowed = f"{2 * len(z)} (two for each picture), or the argument `rows`"
        raise InvalidRequest(f"there are {len(output)} rows of output for {len(z)} pictures", allowed=allowed)
    terms = 1 if rows is None or rows.ndim != 2 else max(rows.shape[1] - 1, 1)
    has_rows = rows is None or (rows.shape == (len(z), 1 + terms) and rows.dtype == torch.int32)
    if not has_rows or weights.shape != (len(z), len(STEP_WEIGHTS) + terms):
        shown = "in pairs" if rows is None else list(rows.shape)
        raise InvalidRequest(
            f"rows {shown} and weights {list(weights.shape)} do not fit {len(z)} pictures",
            allowed=f"rows int32 [{len(z)}, 1 + T], weights [{len(z)}, {len(STEP_WEIGHTS)} + T] for T guidance terms",
        )
    if previous is not None and previous.shape != z.shape:
        raise InvalidRequest(f"previous is {list(previous.shape)}, but z is {list(z.shape)}", allowed="the same shape")
