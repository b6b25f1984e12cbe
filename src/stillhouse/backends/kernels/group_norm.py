"""GroupNorm (arXiv 1803.08494) of pictures in NHWC, channels last, with SiLU behind it.

A group is a strip of neighbouring channels over all pixels: ten of 320 in Stable Diffusion. Reading group by group
would take twenty bytes out of every 640. So programs take tiles of some pixels and of as many whole groups as fit into
a stretch of lanes, and read whole lines:

1. `_moments`: of each part of the pixels and each group, the mean and the sum of squares around it. Channels are
   summed around their first pixel of the part, which cancels nothing where the mean is large.
2. `_normalised`: joins the parts' moments (Chan, Golub and LeVeque, COMPSTAT 1982), normalises, scales, applies SiLU.

Parts depend on the picture's own size, not on the batch, and nothing is added up atomically: so a picture comes out the
same whoever is beside it.

Bytes that must move: each element read once and written once. It is read twice; the second time it lies in the cache,
if the tensor fits there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import DTYPES, Specimen, bucket, launches, specimens_of, tuned
from stillhouse.errors import InvalidRequest

_PARTS = 64
"""Of a picture's pixels, at most: each program of the second pass reads the moments of all of them."""
_PIXELS = 16
"""Of one part, at least."""
_ROWS = 32
"""Pixels that a program holds at once, at most: of more, too few programs fit on a multiprocessor."""
_PROGRAMS = 256
"""Of one picture, about as many as a large GPU runs at once; more of them would read more moments than pixels."""
_LANES = 128


@tuned(["channels", "bucket"], warps=(4,))
@triton.jit
def _moments(
    x,
    means,
    squares,
    pixels,
    parts,
    part_pixels,
    bucket,
    channels: tl.constexpr,
    group: tl.constexpr,
    taken: tl.constexpr,
    GROUPS: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    picture = (program // parts).to(tl.int64)
    begin = program % parts * part_pixels
    end = tl.minimum(begin + part_pixels, pixels)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * taken + lane
    known = (lane < taken) & (channel < channels)
    origin = tl.load(x + (picture * pixels + begin) * channels + channel, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, LANES), tl.float32)
    square = tl.zeros((ROWS, LANES), tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & known[None, :]
        place = (picture * pixels + row)[:, None] * channels + channel[None, :]
        apart = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - origin[None, :]
        apart = tl.where(inside, apart, 0.0)
        total += apart
        square += apart * apart
    count = (end - begin).to(tl.float32)
    offset = tl.sum(total, axis=0) / count
    spread = tl.sum(square, axis=0) - count * offset * offset
    mean = origin + offset

    one = tl.arange(0, GROUPS)
    belongs = (lane[None, :] // group == one[:, None]) & known[None, :]
    centre = tl.sum(tl.where(belongs, mean[None, :], 0.0), axis=1) / group
    beside = tl.where(belongs, mean[None, :] - centre[:, None], 0.0)
    around = tl.sum(tl.where(belongs, spread[None, :], 0.0) + count * beside * beside, axis=1)
    number = tl.program_id(1) * (taken // group) + one
    at = program.to(tl.int64) * (channels // group) + number
    real = (one < taken // group) & (number < channels // group)
    tl.store(means + at, centre, mask=real)
    tl.store(squares + at, around, mask=real)


@tuned(["channels", "bucket"], warps=(4,))
@triton.jit
def _normalised(
    x,
    weight,
    bias,
    means,
    squares,
    out,
    pixels,
    parts,
    part_pixels,
    bucket,
    eps,
    channels: tl.constexpr,
    group: tl.constexpr,
    taken: tl.constexpr,
    SILU: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    picture = (program // parts).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * taken + lane
    known = (lane < taken) & (channel < channels)

    # The first tile is under way while the moments come; most programs have no other.
    begin = program % parts * part_pixels
    end = tl.minimum(begin + part_pixels, pixels)
    row = begin + tl.arange(0, ROWS)
    inside = (row < end)[:, None] & known[None, :]
    place = (picture * pixels + row)[:, None] * channels + channel[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0)

    part = tl.arange(0, PARTS)
    one = tl.arange(0, GROUPS)
    number = tl.program_id(1) * (taken // group) + one
    real = (one < taken // group) & (number < channels // group)
    count = tl.minimum(tl.maximum(pixels - part * part_pixels, 0), part_pixels).to(tl.float32)
    count = tl.where(part < parts, count, 0.0)[:, None]
    at = (picture * parts + part)[:, None] * (channels // group) + number[None, :]
    present = (part < parts)[:, None] & real[None, :]
    mean = tl.load(means + at, mask=present, other=0.0)
    square = tl.load(squares + at, mask=present, other=0.0)
    centres = tl.sum(count * mean, axis=0) / pixels
    apart = tl.where(present, mean - centres[None, :], 0.0)
    variances = tl.sum(square + count * group * apart * apart, axis=0) / (pixels * group)

    belongs = lane[None, :] // group == one[:, None]
    centre = tl.sum(tl.where(belongs, centres[:, None], 0.0), axis=0)
    scale = tl.sum(tl.where(belongs, tl.rsqrt(variances + eps)[:, None], 0.0), axis=0)
    gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) * scale
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    tl.store(out + place, _shaped(tile, centre, gain, shift, SILU), mask=inside)
    for first in range(begin + ROWS, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        within = (rows < end)[:, None] & known[None, :]
        at_rows = (picture * pixels + rows)[:, None] * channels + channel[None, :]
        more = tl.load(x + at_rows, mask=within, other=0.0)
        tl.store(out + at_rows, _shaped(more, centre, gain, shift, SILU), mask=within)


@triton.jit
def _shaped(tile, centre, gain, shift, SILU: tl.constexpr):  # noqa: N803
    value = (tile.to(tl.float32) - centre[None, :]) * gain[None, :] + shift[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    return value


@torch.library.custom_op("stillhouse::group_norm", mutates_args=())
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    """GroupNorm, and SiLU of it where it is asked for.

    Args:
        x: float16, bfloat16 or float32, [B, C, h, w]; a copy is made of one that is not channels last.
        weight, bias: [C].
        groups: of the channels.
        eps: added to the variance.
        silu: whether SiLU follows.

    Returns:
        [B, C, h, w], channels last.

    Raises:
        InvalidRequest: channels that do not divide into groups, or weights of another length.
        UnsupportedPrecision: another dtype.
    """
    x = _fitting(x, weight, bias, groups)
    if not launches(x, weight, bias):
        return reference(x, weight, bias, groups, eps, silu)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    batch, channels, height, width = x.shape
    pixels, layout = height * width, layout_of(channels, groups)
    part_pixels, parts = _parts(pixels, layout.blocks)
    means = x.new_empty(batch, parts, groups, dtype=torch.float32)
    squares = torch.empty_like(means)
    told = (pixels, parts, part_pixels, bucket(pixels))
    rows = min(_ROWS, triton.next_power_of_2(part_pixels))
    within = (channels, channels // groups, layout.taken)
    tile = (layout.groups, layout.lanes, rows)
    programs = (batch * parts, layout.blocks)
    known = (x, weight.contiguous(), bias.contiguous(), means, squares, out)
    with torch.cuda.device_of(x):
        _moments[programs](x, means, squares, *told, *within, *tile)
        _normalised[programs](*known, *told, eps, *within, silu, triton.next_power_of_2(parts), *tile)
    return out


@group_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    """The same in plain torch."""
    normalised = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    shaped = torch.nn.functional.silu(normalised) if silu else normalised
    return shaped.contiguous(memory_format=torch.channels_last)


def bytes_moved(x: Tensor) -> int:
    """See the head of this file."""
    return 2 * x.numel() * x.element_size()


@dataclass(frozen=True, slots=True)
class Layout:
    """How channels lie on lanes.

    Args:
        lanes: of one program, a power of two.
        taken: of these, the channels of as many whole groups as fit.
        groups: that these are, and none, up to a power of two.
        blocks: programs for all channels.
    """

    lanes: int
    taken: int
    groups: int
    blocks: int


def layout_of(channels: int, groups: int) -> Layout:
    """As many whole groups as fit into a stretch of lanes.

    >>> layout_of(320, 32)
    Layout(lanes=128, taken=120, groups=16, blocks=3)
    """
    group = channels // groups
    lanes = max(_LANES, triton.next_power_of_2(group))
    taken = lanes // group * group
    return Layout(lanes, taken, triton.next_power_of_2(taken // group), triton.cdiv(channels, taken))


def specimens() -> Iterator[Specimen]:
    """Both passes in each dtype, in the narrowest and widest blocks, by few and by many rows."""
    for name in DTYPES.values():
        for channels, rows in ((320, 32), (2560, 16)):
            layout = layout_of(channels, 32)
            numbers = dict.fromkeys(("pixels", "parts", "part_pixels", "bucket"), "i32")
            moments = {"channels": channels, "group": channels // 32, "taken": layout.taken}
            moments |= {"GROUPS": layout.groups, "LANES": layout.lanes, "ROWS": rows}
            kept = {"means": "*fp32", "squares": "*fp32"}
            told = {"x": f"*{name}", **kept, **numbers}
            yield from specimens_of(_moments, f"group_norm moments {name} {channels}", told, moments)
            for silu in (False, True):
                constants = {**moments, "SILU": silu, "PARTS": _PARTS}
                tensors = dict.fromkeys(("x", "weight", "bias", "out"), f"*{name}")
                told = {**tensors, **kept, **numbers, "eps": "fp32"}
                called = f"group_norm {name} {channels}{' silu' if silu else ''}"
                yield from specimens_of(_normalised, called, told, constants)


def _parts(pixels: int, blocks: int) -> tuple[int, int]:
    """Pixels of each part, and how many parts there are, of a picture whose channels take so many programs."""
    wanted = max(1, min(_PARTS, pixels // _PIXELS, triton.cdiv(_PROGRAMS, blocks)))
    part_pixels = triton.cdiv(pixels, wanted)
    return part_pixels, triton.cdiv(pixels, part_pixels)


def _fitting(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups:
        raise InvalidRequest(f"{groups} groups of {list(x.shape)}", allowed="[B, C, h, w], whose C divides into groups")
    if weight.shape != (x.shape[1],) or bias.shape != (x.shape[1],):
        raise InvalidRequest(
            f"weights of {list(weight.shape)} and {list(bias.shape)}", allowed=f"[{x.shape[1]}], one for each channel"
        )
    return x.contiguous(memory_format=torch.channels_last)
