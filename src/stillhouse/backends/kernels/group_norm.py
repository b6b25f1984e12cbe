"""GroupNorm (arXiv 1803.08494) of pictures in NHWC, channels last, with SiLU behind it.

A group is a strip of neighbouring channels over all pixels: ten of 320 in Stable Diffusion. How it is read depends on
its size:

* A strip that one multiprocessor holds is a program's own (`_strip`): in its registers, where it is read once, or in
  the cache beside it, out of which it is read again. That is one launch.
* Elsewhere programs take tiles of some pixels and of as many whole groups as fit into a stretch of lanes, and read
  whole lines, since group by group would take twenty bytes out of every 640:

  1. `_moments`: of each part of the pixels and each group, the mean and the sum of squares around it. Channels are
     summed around their first pixel of the part, which cancels nothing where the mean is large.
  2. `_joined`, for pictures of so many parts that not every program should read the moments of all: they become one's.
  3. `_normalised`: joins the parts' moments (Chan, Golub and LeVeque, COMPSTAT 1982), normalises, scales, applies SiLU.

All of it depends on the picture's own size, not on the batch, and nothing is added up atomically: so a picture comes
out the same whoever is beside it.

Bytes that must move: each element read once and written once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from stillhouse.backends.kernels.launch import DTYPES, CompileCase, autotune, compile_cases, size_bucket, uses_kernel
from stillhouse.errors import InvalidRequest

_MAX_HELD_ELEMENTS = 32768
"""Elements of a strip, rounded up to powers of two, that the registers of one program hold."""
_CACHE_BYTES, _CACHE_LINE_BYTES = 192 << 10, 128
"""Bytes that the cache of one multiprocessor holds, and of one of its lines: each pixel of a strip takes one at least,
whatever is of others in it."""
_STRIP_ELEMENTS = 8192
"""Elements of a strip that are read at a time where it is not held."""
_FEWEST_WARPS, _MOST_WARPS, _WARP_ELEMENTS = 4, 32, 512
"""Of the program that reads a strip, and elements that each of them has."""
_PARTS, _MOST_PARTS = 64, 512
"""Of a picture's pixels, at most, where every program of the last pass reads the moments of all; and where they are
joined before."""
_LARGE = 16384
"""Pixels of a picture above which they are, since few parts would leave most of a GPU without work."""
_PIXELS = 16
"""Of one part, at least."""
_ROWS = 32
"""Pixels that a program holds at once, at most: of more, too few programs fit on a multiprocessor."""
_PROGRAMS, _MOST_PROGRAMS = 256, 528
"""Of one picture, about as many as a large GPU runs at once, or several on each of its multiprocessors where moments
are joined; more of them would read more moments than pixels."""
_LANES = 128
_JOINED_GROUPS = 8
"""Groups whose moments a program joins: their bytes are one read."""


def _prune_configs(configs: Sequence[Any], named_args: Mapping[str, Any], **constants: Any) -> Sequence[Any]:
    """The configuration by which a thread has sixteen elements, or the nearest. Not the quickest of several: sums would
    be added up in another order, and a picture differ from one process to the next."""
    given = {**named_args, **constants}
    warps = min(_MOST_WARPS, max(_FEWEST_WARPS, given["ROWS"] * given["WIDE"] // _WARP_ELEMENTS))
    return [one for one in configs if one.num_warps == warps] or configs[:1]


@autotune(["channels", "bucket", "HELD", "WIDE", "ROWS"], warps=(4, 8, 16, 32), prune=_prune_configs)
@triton.jit
def _normalize_strip(
    x,
    weight,
    bias,
    out,
    pixels,
    bucket,
    eps,
    channels: tl.constexpr,
    group: tl.constexpr,
    SILU: tl.constexpr,  # noqa: N803
    HELD: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    base = (program // (channels // group)).to(tl.int64) * pixels
    lane = tl.arange(0, WIDE)
    known = lane < group
    channel = program % (channels // group) * group + lane
    weights = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    if HELD:
        row = tl.arange(0, ROWS)
        inside = (row < pixels)[:, None] & known[None, :]
        place = (base + row)[:, None] * channels + channel[None, :]
        tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(tl.sum(tile, axis=0), axis=0) / (pixels * group)
        apart = tl.where(inside, tile - mean, 0.0)
        variance = tl.sum(tl.sum(apart * apart, axis=0), axis=0) / (pixels * group)
        gain = weights * tl.rsqrt(variance + eps)
        tl.store(out + place, _scale_shift(tile, mean, gain, shift, SILU), mask=inside)
    else:
        means, spreads = _channel_moments(x, base, 0, pixels, channel, known, channels, LANES=WIDE, ROWS=ROWS)
        mean = tl.sum(tl.where(known, means, 0.0), axis=0) / group
        beside = tl.where(known, means - mean, 0.0)
        around = tl.sum(tl.where(known, spreads, 0.0) + pixels * beside * beside, axis=0)
        gain = weights * tl.rsqrt(around / (pixels * group) + eps)
        _normalize_rows(x, out, base, 0, pixels, channel, known, channels, mean, gain, shift, SILU=SILU, ROWS=ROWS)


@autotune(["channels", "bucket"], warps=(4,))
@triton.jit
def _part_moments(
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
    base = (program // parts).to(tl.int64) * pixels
    begin = program % parts * part_pixels
    end = tl.minimum(begin + part_pixels, pixels)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * taken + lane
    known = (lane < taken) & (channel < channels)
    mean, spread = _channel_moments(x, base, begin, end, channel, known, channels, LANES=LANES, ROWS=ROWS)

    count = (end - begin) * 1.0
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


@autotune(["groups", "bucket"], warps=(4,))
@triton.jit
def _join_moments(
    means,
    squares,
    mean,
    square,
    pixels,
    parts,
    part_pixels,
    bucket,
    groups: tl.constexpr,
    group: tl.constexpr,
    PARTS: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
):
    picture = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    real = number < groups
    base = picture * parts * groups
    centre, around = _combine_parts(
        means, squares, base, number, real, pixels, parts, part_pixels, groups, group, PARTS
    )
    tl.store(mean + picture * groups + number, centre, mask=real)
    tl.store(square + picture * groups + number, around, mask=real)


@autotune(["channels", "bucket"], warps=(4,))
@triton.jit
def _normalize_tiles(
    x,
    weight,
    bias,
    means,
    squares,
    out,
    pixels,
    parts,
    part_pixels,
    tiles,
    tile_pixels,
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
    picture = (program // tiles).to(tl.int64)
    base = picture * pixels
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * taken + lane
    known = (lane < taken) & (channel < channels)

    # The first tile and the weights are under way while the moments come; most programs have no other tile.
    begin = program % tiles * tile_pixels
    end = tl.minimum(begin + tile_pixels, pixels)
    row = begin + tl.arange(0, ROWS)
    inside = (row < end)[:, None] & known[None, :]
    place = (base + row)[:, None] * channels + channel[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)

    one = tl.arange(0, GROUPS)
    number = tl.program_id(1) * (taken // group) + one
    real = (one < taken // group) & (number < channels // group)
    groups: tl.constexpr = channels // group
    first = picture * parts * groups
    centres, around = _combine_parts(
        means, squares, first, number, real, pixels, parts, part_pixels, groups, group, PARTS
    )
    scales = tl.rsqrt(around / (pixels * group) + eps)

    belongs = lane[None, :] // group == one[:, None]
    centre = tl.sum(tl.where(belongs, centres[:, None], 0.0), axis=0)[None, :]
    gain = weights * tl.sum(tl.where(belongs, scales[:, None], 0.0), axis=0)
    tl.store(out + place, _scale_shift(tile, centre, gain, shift, SILU), mask=inside)
    _normalize_rows(
        x, out, base, begin + ROWS, end, channel, known, channels, centre, gain, shift, SILU=SILU, ROWS=ROWS
    )


@triton.jit
def _channel_moments(x, base, begin, end, channel, known, channels, LANES: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Of the pixels from begin to end each channel's mean, and its sum of squares around that."""
    origin = tl.load(x + (base + begin) * channels + channel, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, LANES), tl.float32)
    square = tl.zeros((ROWS, LANES), tl.float32)
    for first in tl.range(begin, end, ROWS, loop_unroll_factor=2):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & known[None, :]
        place = (base + row)[:, None] * channels + channel[None, :]
        apart = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - origin[None, :]
        apart = tl.where(inside, apart, 0.0)
        total += apart
        square += apart * apart
    count = (end - begin) * 1.0
    offset = tl.sum(total, axis=0) / count
    return origin + offset, tl.sum(square, axis=0) - count * offset * offset


@triton.jit
def _combine_parts(
    means,
    squares,
    base,
    number,
    real,
    pixels,
    parts,
    part_pixels,
    groups: tl.constexpr,
    group: tl.constexpr,
    PARTS: tl.constexpr,  # noqa: N803
):
    """Of some groups the mean over all parts, and the sum of squares around it."""
    part = tl.arange(0, PARTS)
    count = tl.minimum(tl.maximum(pixels - part * part_pixels, 0), part_pixels).to(tl.float32)
    count = tl.where(part < parts, count, 0.0)[:, None]
    at = base + part[:, None] * groups + number[None, :]
    present = (part < parts)[:, None] & real[None, :]
    mean = tl.load(means + at, mask=present, other=0.0)
    square = tl.load(squares + at, mask=present, other=0.0)
    centres = tl.sum(count * mean, axis=0) / pixels
    apart = tl.where(present, mean - centres[None, :], 0.0)
    return centres, tl.sum(square + count * group * apart * apart, axis=0)


@triton.jit
def _normalize_rows(
    x,
    out,
    base,
    begin,
    end,
    channel,
    known,
    channels,
    centre,
    gain,
    shift,
    SILU: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """Normalise the pixels from begin to end."""
    for first in tl.range(begin, end, ROWS, loop_unroll_factor=2):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & known[None, :]
        place = (base + row)[:, None] * channels + channel[None, :]
        tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, _scale_shift(tile, centre, gain, shift, SILU), mask=inside)


@triton.jit
def _scale_shift(tile, centre, gain, shift, SILU: tl.constexpr):  # noqa: N803
    value = (tile - centre) * gain[None, :] + shift[None, :]
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
    x = _check_weights(x, weight, bias, groups)
    if not uses_kernel(x, weight, bias):
        return reference(x, weight, bias, groups, eps, silu)
    return launch_group_norm(x, weight, bias, groups, eps, silu, read_strategy(x, groups))


ReadStrategy: TypeAlias = Literal["held", "cached", "parts"]
"""How a strip is read: once, into registers; twice, by one program; or in parts, by many."""


def read_strategy(x: Tensor, groups: int) -> ReadStrategy:
    """How this picture's strips are read best.

    >>> way_of(torch.empty(2, 640, 32, 32), 32), way_of(torch.empty(2, 320, 64, 64, dtype=torch.float16), 32)
    ('held', 'parts')
    """
    group, pixels = x.shape[1] // groups, x.shape[2] * x.shape[3]
    if math.prod(_tile(pixels, group, is_held=True)) <= _MAX_HELD_ELEMENTS:
        return "held"
    lines = triton.cdiv(group * x.element_size(), _CACHE_LINE_BYTES)
    return "cached" if pixels * lines * _CACHE_LINE_BYTES <= _CACHE_BYTES else "parts"


def launch_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, strategy: ReadStrategy
) -> Tensor:
    """`group_norm` by its kernels, in one of their ways."""
    out = torch.empty_like(x)
    if not x.numel():
        return out
    known = (x, weight.contiguous(), bias.contiguous())
    with torch.cuda.device_of(x):
        if strategy == "parts":
            _launch_parts(*known, out, groups, eps, silu)
        else:
            _launch_strip(*known, out, groups, eps, silu, strategy == "held")
    return out


def _tile(pixels: int, group: int, *, is_held: bool) -> tuple[int, int]:
    """Lanes and pixels of a strip that are read at a time: all that there are, or a stretch of them."""
    wide, high = triton.next_power_of_2(group), triton.next_power_of_2(pixels)
    return wide, high if is_held else min(high, max(1, _STRIP_ELEMENTS // wide))


def _launch_strip(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, groups: int, eps: float, silu: bool, is_held: bool
) -> None:
    batch, channels, height, width = x.shape
    pixels, group = height * width, channels // groups
    told = (pixels, size_bucket(pixels), eps, channels, group, silu, is_held, *_tile(pixels, group, is_held=is_held))
    _normalize_strip[(batch * groups,)](x, weight, bias, out, *told)


def _launch_parts(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, groups: int, eps: float, silu: bool) -> None:
    batch, channels, height, width = x.shape
    pixels, group, layout = height * width, channels // groups, channel_layout(channels, groups)
    part_pixels, parts = _split_pixels(pixels, layout.blocks)
    means = x.new_empty(batch, parts, groups, dtype=torch.float32)
    squares = torch.empty_like(means)
    within = (channels, group, layout.used)
    tile = (layout.groups, layout.lanes, min(_ROWS, triton.next_power_of_2(part_pixels)))
    programs, size = (batch * parts, layout.blocks), size_bucket(pixels)
    divided = (parts, part_pixels)
    _part_moments[programs](x, means, squares, pixels, *divided, size, *within, *tile)
    if parts > _PARTS:
        mean, square = (means.new_empty(batch, 1, groups) for _ in range(2))
        shape = (groups, group, triton.next_power_of_2(parts), min(_JOINED_GROUPS, triton.next_power_of_2(groups)))
        by = (batch, triton.cdiv(groups, shape[-1]))
        _join_moments[by](means, squares, mean, square, pixels, *divided, size, *shape)
        means, squares, divided = mean, square, (1, pixels)
    several = triton.next_power_of_2(divided[0])
    told = (pixels, *divided, parts, part_pixels, size, eps, *within, silu, several, *tile)
    _normalize_tiles[programs](x, weight, bias, means, squares, out, *told)


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
class ChannelLayout:
    """How channels lie on lanes.

    Args:
        lanes: of one program, a power of two.
        taken: of these, the channels of as many whole groups as fit.
        groups: that these are, and none, up to a power of two.
        blocks: programs for all channels.
    """

    lanes: int
    used: int
    groups: int
    blocks: int


def channel_layout(channels: int, groups: int) -> ChannelLayout:
    """As many whole groups as fit into a stretch of lanes.

    >>> layout_of(320, 32)
    Layout(lanes=128, taken=120, groups=16, blocks=3)
    """
    group = channels // groups
    lanes = max(_LANES, triton.next_power_of_2(group))
    taken = lanes // group * group
    return ChannelLayout(lanes, taken, triton.next_power_of_2(taken // group), triton.cdiv(channels, taken))


def cases() -> Iterator[CompileCase]:
    """Every kernel in each dtype, in the narrowest and widest blocks, by few and by many rows."""
    for name in DTYPES.values():
        tensors = dict.fromkeys(("x", "weight", "bias", "out"), f"*{name}")
        kept = {"means": "*fp32", "squares": "*fp32"}
        of_parts = dict.fromkeys(("pixels", "parts", "part_pixels", "bucket"), "i32")
        for channels, rows in ((320, 32), (2560, 16)):
            layout, group = channel_layout(channels, 32), channels // 32
            moments = {"channels": channels, "group": group, "taken": layout.used}
            moments |= {"GROUPS": layout.groups, "LANES": layout.lanes, "ROWS": rows}
            told = {"x": f"*{name}", **kept, **of_parts}
            yield from compile_cases(_part_moments, f"group_norm moments {name} {channels}", told, moments)
            for silu in (False, True):
                constants = {**moments, "SILU": silu, "PARTS": _PARTS}
                told = {**tensors, **kept, **of_parts, "tiles": "i32", "tile_pixels": "i32", "eps": "fp32"}
                called = f"group_norm {name} {channels}{' silu' if silu else ''}"
                yield from compile_cases(_normalize_tiles, called, told, constants)
            # Behind `_joined`, whose one part Triton knows as a constant.
            constants = {**moments, "SILU": True, "PARTS": 1, "parts": 1}
            told = {argument: kind for argument, kind in told.items() if argument != "parts"}
            yield from compile_cases(_normalize_tiles, f"group_norm {name} {channels} of one part", told, constants)
        told = {**kept, "mean": "*fp32", "square": "*fp32", **of_parts}
        joined = {"groups": 32, "group": 4, "PARTS": _MOST_PARTS, "GROUPS": _JOINED_GROUPS}
        if name == "fp32":  # whatever pictures are, their moments are
            yield from compile_cases(_join_moments, "group_norm joined", told, joined)
        for channels, pixels in ((1280, 64), (640, 1024), (1280, 1024)):
            group = channels // 32
            is_held = math.prod(_tile(pixels, group, is_held=True)) <= _MAX_HELD_ELEMENTS
            wide, rows = _tile(pixels, group, is_held=is_held)
            sizes = {"HELD": is_held, "WIDE": wide, "ROWS": rows}
            told = {**tensors, "pixels": "i32", "bucket": "i32", "eps": "fp32"}
            constants = {"channels": channels, "group": group, "SILU": True, **sizes}
            yield from compile_cases(_normalize_strip, f"group_norm strip {name} {channels} {pixels}", told, constants)


def _split_pixels(pixels: int, blocks: int) -> tuple[int, int]:
    """Pixels of each part, and how many parts there are, of a picture whose channels take so many programs.

    No part is empty: a loop that is unrolled would not see that it has nothing to do.
    """
    is_large = pixels > _LARGE
    most, programs = (_MOST_PARTS, _MOST_PROGRAMS) if is_large else (_PARTS, _PROGRAMS)
    wanted = max(1, min(most, pixels // _PIXELS, triton.cdiv(programs, blocks)))
    part_pixels = triton.cdiv(pixels, wanted)
    return part_pixels, triton.cdiv(pixels, part_pixels)


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups:
        raise InvalidRequest(f"{groups} groups of {list(x.shape)}", allowed="[B, C, h, w], whose C divides into groups")
    if weight.shape != (x.shape[1],) or bias.shape != (x.shape[1],):
        raise InvalidRequest(
            f"weights of {list(weight.shape)} and {list(bias.shape)}", allowed=f"[{x.shape[1]}], one for each channel"
        )
    return x.contiguous(memory_format=torch.channels_last)
