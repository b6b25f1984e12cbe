"""GroupNorm (arXiv 1803.08494) of pictures in NHWC (channels last), with SiLU after it.

A group is a strip of consecutive channels over all pixels of a picture: in Stable Diffusion, ten of 320 channels. The
size of a strip decides how the strip is read:

* A strip that fits into one multiprocessor is normalised by one program in one launch (`_normalize_strip`). It is read
  once where registers hold it, and otherwise a second time from the L1 cache.
* For larger strips, programs take tiles of some pixels and of as many whole groups as fit into the lanes, and read
  whole cache lines; one group at a time would use twenty bytes of every 640:

  1. `_part_moments`: of each part of the pixels and each group, the mean and the sum of squares around it. Channels are
     summed relative to their first pixel of the part, so that nothing cancels where the mean is large.
  2. `_join_moments`, for pictures of many parts: joins their moments, so that not every program reads all of them.
  3. `_normalize_tiles`: joins the moments of the parts (Chan, Golub and LeVeque, COMPSTAT 1982), normalises, scales,
     and applies SiLU.

The order of additions depends on the picture's own size, not on the batch, and nothing is added atomically: the result
of a picture does not depend on the rest of its batch.

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
"""Largest size of a strip (one group's channels of all pixels of a picture) that the registers of one program hold. Its
size is the number of channels times the number of pixels, each rounded up to a power of two."""
_CACHE_BYTES, _CACHE_LINE_BYTES = 192 << 10, 128
"""Bytes of the L1 cache of a GPU's multiprocessor, and of a line of this cache."""
_STRIP_ELEMENTS = 8192
"""Number of elements that a program reads at a time from a strip (one group of a picture) too large for registers."""
_FEWEST_WARPS, _MOST_WARPS, _WARP_ELEMENTS = 4, 32, 512
"""Smallest and largest number of warps of a program that normalises a group, and number of elements for each warp."""
_PARTS, _MOST_PARTS = 64, 512
"""Largest numbers of parts into which the pixels of a picture are divided. `_PARTS` applies where every program of the
last pass reads the moments (means and sums of squares) of all parts, `_MOST_PARTS` where an earlier pass joins the
moments.
"""
_LARGE = 16384
"""Number of pixels of a picture above which the moments of its parts are joined before the last pass. Joining allows
more parts; with few parts, most of a GPU would be idle.
"""
_PIXELS = 16
"""Smallest number of pixels of a part of a picture."""
_ROWS = 32
"""Largest number of pixels that a program holds at once. With more, too few programs run on a multiprocessor."""
_PROGRAMS, _MOST_PROGRAMS = 256, 528
"""Largest numbers of programs for one picture. `_PROGRAMS`, about as many as a large GPU runs at once, applies where
every program reads the moments of all parts: more programs would read more moments than pixels. `_MOST_PROGRAMS`,
several for each multiprocessor, applies where an earlier pass joins the moments.
"""
_LANES = 128
_JOINED_GROUPS = 8
"""Number of groups whose moments (means and sums of squares) one program joins. The values of so many groups fill one
memory read of a GPU.
"""


def _prune_configs(configs: Sequence[Any], named_args: Mapping[str, Any], **constants: Any) -> Sequence[Any]:
    """Return only the configuration to use, so that autotuning has nothing to measure.

    The number of warps, 4 to 32, gives each thread about sixteen elements. A measured choice could differ between
    processes, and so could the order of additions and the last bits of the picture.

    Args:
        configs: all configurations, which differ in the number of warps.
        named_args, constants: the kernel's arguments by name, among them ROWS and WIDE, the numbers of pixels and
            channels that a program reads at a time.
    """
    arguments = {**named_args, **constants}
    warps = min(_MOST_WARPS, max(_FEWEST_WARPS, arguments["ROWS"] * arguments["WIDE"] // _WARP_ELEMENTS))
    return [config for config in configs if config.num_warps == warps] or configs[:1]


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
    lane_mask = lane < group
    channel = program % (channels // group) * group + lane
    weights = tl.load(weight + channel, mask=lane_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=lane_mask, other=0.0).to(tl.float32)
    if HELD:
        row = tl.arange(0, ROWS)
        inside = (row < pixels)[:, None] & lane_mask[None, :]
        place = (base + row)[:, None] * channels + channel[None, :]
        tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(tl.sum(tile, axis=0), axis=0) / (pixels * group)
        apart = tl.where(inside, tile - mean, 0.0)
        variance = tl.sum(tl.sum(apart * apart, axis=0), axis=0) / (pixels * group)
        gain = weights * tl.rsqrt(variance + eps)
        tl.store(out + place, _scale_shift(tile, mean, gain, shift, SILU), mask=inside)
    else:
        means, spreads = _channel_moments(x, base, 0, pixels, channel, lane_mask, channels, LANES=WIDE, ROWS=ROWS)
        mean = tl.sum(tl.where(lane_mask, means, 0.0), axis=0) / group
        beside = tl.where(lane_mask, means - mean, 0.0)
        around = tl.sum(tl.where(lane_mask, spreads, 0.0) + pixels * beside * beside, axis=0)
        gain = weights * tl.rsqrt(around / (pixels * group) + eps)
        _normalize_rows(x, out, base, 0, pixels, channel, lane_mask, channels, mean, gain, shift, SILU=SILU, ROWS=ROWS)


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
    used: tl.constexpr,
    GROUPS: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    base = (program // parts).to(tl.int64) * pixels
    begin = program % parts * part_pixels
    end = tl.minimum(begin + part_pixels, pixels)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * used + lane
    lane_mask = (lane < used) & (channel < channels)
    mean, spread = _channel_moments(x, base, begin, end, channel, lane_mask, channels, LANES=LANES, ROWS=ROWS)

    count = (end - begin) * 1.0
    index = tl.arange(0, GROUPS)
    belongs = (lane[None, :] // group == index[:, None]) & lane_mask[None, :]
    centre = tl.sum(tl.where(belongs, mean[None, :], 0.0), axis=1) / group
    beside = tl.where(belongs, mean[None, :] - centre[:, None], 0.0)
    around = tl.sum(tl.where(belongs, spread[None, :], 0.0) + count * beside * beside, axis=1)
    number = tl.program_id(1) * (used // group) + index
    at = program.to(tl.int64) * (channels // group) + number
    real = (index < used // group) & (number < channels // group)
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
    used: tl.constexpr,
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
    channel = tl.program_id(1) * used + lane
    lane_mask = (lane < used) & (channel < channels)

    # `begin` is the first pixel of this program's first tile. The tile, weight and bias are loaded before the moments
    # are combined, so that no load waits for this computation. Most programs have no other tile.
    begin = program % tiles * tile_pixels
    end = tl.minimum(begin + tile_pixels, pixels)
    row = begin + tl.arange(0, ROWS)
    inside = (row < end)[:, None] & lane_mask[None, :]
    place = (base + row)[:, None] * channels + channel[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + channel, mask=lane_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=lane_mask, other=0.0).to(tl.float32)

    index = tl.arange(0, GROUPS)
    number = tl.program_id(1) * (used // group) + index
    real = (index < used // group) & (number < channels // group)
    groups: tl.constexpr = channels // group
    first = picture * parts * groups
    centres, around = _combine_parts(
        means, squares, first, number, real, pixels, parts, part_pixels, groups, group, PARTS
    )
    scales = tl.rsqrt(around / (pixels * group) + eps)

    belongs = lane[None, :] // group == index[:, None]
    centre = tl.sum(tl.where(belongs, centres[:, None], 0.0), axis=0)[None, :]
    gain = weights * tl.sum(tl.where(belongs, scales[:, None], 0.0), axis=0)
    tl.store(out + place, _scale_shift(tile, centre, gain, shift, SILU), mask=inside)
    _normalize_rows(
        x, out, base, begin + ROWS, end, channel, lane_mask, channels, centre, gain, shift, SILU=SILU, ROWS=ROWS
    )


@triton.jit
def _channel_moments(x, base, begin, end, channel, lane_mask, channels, LANES: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Return the mean of each channel over the pixels from begin to end, and the sum of squares around the mean.

    Args:
        x: pointer to the batch in NHWC; channels: its number of channels.
        base: index of the picture's first pixel in the batch.
        begin, end: range of pixels in the picture.
        channel: index of the channel of each lane.
        lane_mask: lanes that hold a channel.
        LANES, ROWS: numbers of channels and pixels that are read at a time.
    """
    origin = tl.load(x + (base + begin) * channels + channel, mask=lane_mask, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, LANES), tl.float32)
    square = tl.zeros((ROWS, LANES), tl.float32)
    for first in tl.range(begin, end, ROWS, loop_unroll_factor=2):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & lane_mask[None, :]
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
    """Return the mean of some groups over all parts of a picture, and the sum of squares around this mean.

    Args:
        means, squares: pointers to the mean of each group in each part, and to the sum of squares around this mean.
        base: index of the picture's first entry in `means` and `squares`.
        number: indices of the groups; real: which of these groups exist.
        pixels, parts, part_pixels: numbers of pixels and parts of the picture, and of pixels of a part.
        groups, group: numbers of groups, and of channels of a group.
        PARTS: `parts`, rounded up to a power of two.
    """
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
    lane_mask,
    channels,
    centre,
    gain,
    shift,
    SILU: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """Normalise the pixels from begin to end of one picture in some channels, and write them to `out`.

    Args:
        x, out: pointers to the batch in NHWC and to the result; channels: number of channels.
        base: index of the picture's first pixel in the batch.
        begin, end: range of pixels in the picture.
        channel: index of the channel of each lane.
        lane_mask: lanes that hold a channel.
        centre, gain, shift: numbers of each channel in (x - centre) * gain + shift.
        SILU: whether SiLU follows.
        ROWS: number of pixels that are read at a time.
    """
    for first in tl.range(begin, end, ROWS, loop_unroll_factor=2):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & lane_mask[None, :]
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
    """Return the GroupNorm of pictures, followed by SiLU where `silu` is true.

    Args:
        x: float16, bfloat16 or float32, [B, C, h, w]; copied where it is not channels last.
        weight, bias: [C].
        groups: number of groups of channels.
        eps: added to the variance.

    Returns:
        [B, C, h, w], channels last.

    Raises:
        InvalidRequest: the channels do not divide into groups, or `weight` or `bias` has another length.
        UnsupportedPrecision: a tensor has another dtype.
    """
    x = _check_weights(x, weight, bias, groups)
    if not uses_kernel(x, weight, bias):
        return reference(x, weight, bias, groups, eps, silu)
    return launch_group_norm(x, weight, bias, groups, eps, silu, read_strategy(x, groups))


ReadStrategy: TypeAlias = Literal["held", "cached", "parts"]
"""How a strip (one group's channels of a picture) is read. "held": once, into registers of one program. "cached": twice
by one program, the second time from the cache. "parts": by many programs."""


def read_strategy(x: Tensor, groups: int) -> ReadStrategy:
    """Return how the kernels read strips (one group's channels of a picture); the size of the pictures decides.

    Args:
        x: the pictures, [B, C, h, w].
        groups: number of groups of channels.

    >>> small, large = torch.empty(2, 640, 32, 32), torch.empty(2, 320, 64, 64, dtype=torch.float16)
    >>> read_strategy(small, 32), read_strategy(large, 32)
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
    """Return the result of `group_norm`, computed by the kernels of `strategy`, even where another strategy is faster.

    The other arguments are those of `group_norm`.
    """
    out = torch.empty_like(x)
    if not x.numel():
        return out
    inputs = (x, weight.contiguous(), bias.contiguous())
    with torch.cuda.device_of(x):
        if strategy == "parts":
            _launch_parts(*inputs, out, groups, eps, silu)
        else:
            _launch_strip(*inputs, out, groups, eps, silu, strategy == "held")
    return out


def _tile(pixels: int, group: int, *, is_held: bool) -> tuple[int, int]:
    """Return how many channels and pixels of a strip a program reads at a time, both powers of two.

    Args:
        pixels: number of pixels of a picture.
        group: number of channels of a group.
        is_held: whether registers hold the whole strip, so that it is read at once.
    """
    wide, high = triton.next_power_of_2(group), triton.next_power_of_2(pixels)
    return wide, high if is_held else min(high, max(1, _STRIP_ELEMENTS // wide))


def _launch_strip(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, groups: int, eps: float, silu: bool, is_held: bool
) -> None:
    batch, channels, height, width = x.shape
    pixels, group = height * width, channels // groups
    arguments = (
        pixels,
        size_bucket(pixels),
        eps,
        channels,
        group,
        silu,
        is_held,
        *_tile(pixels, group, is_held=is_held),
    )
    _normalize_strip[(batch * groups,)](x, weight, bias, out, *arguments)


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
        grid = (batch, triton.cdiv(groups, shape[-1]))
        _join_moments[grid](means, squares, mean, square, pixels, *divided, size, *shape)
        means, squares, divided = mean, square, (1, pixels)
    max_parts = triton.next_power_of_2(divided[0])
    arguments = (pixels, *divided, parts, part_pixels, size, eps, *within, silu, max_parts, *tile)
    _normalize_tiles[programs](x, weight, bias, means, squares, out, *arguments)


@group_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    """Return the result of `group_norm`, computed in plain torch."""
    normalised = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    shaped = torch.nn.functional.silu(normalised) if silu else normalised
    return shaped.contiguous(memory_format=torch.channels_last)


def bytes_moved(x: Tensor) -> int:
    """Return the least number of bytes that a GroupNorm must read and write: each element once."""
    return 2 * x.numel() * x.element_size()


@dataclass(frozen=True, slots=True)
class ChannelLayout:
    """The assignment of channels to the lanes (vector elements) of Triton programs.

    Args:
        lanes: number of lanes of one program, a power of two.
        used: number of lanes that hold channels, for as many whole groups as fit.
        groups: number of groups in the used lanes, rounded up to a power of two.
        blocks: number of programs for all channels.
    """

    lanes: int
    used: int
    groups: int
    blocks: int


def channel_layout(channels: int, groups: int) -> ChannelLayout:
    """Return how channels are assigned to programs: each program takes as many whole groups as fit into its lanes.

    Args:
        channels, groups: number of channels, and number of groups into which the channels are divided.

    >>> channel_layout(320, 32)
    ChannelLayout(lanes=128, used=120, groups=16, blocks=3)
    """
    group = channels // groups
    lanes = max(_LANES, triton.next_power_of_2(group))
    used = lanes // group * group
    return ChannelLayout(lanes, used, triton.next_power_of_2(used // group), triton.cdiv(channels, used))


def cases() -> Iterator[CompileCase]:
    """Yield the kernels to compile: each in all dtypes, for few and many channels and pixels."""
    for name in DTYPES.values():
        tensors = dict.fromkeys(("x", "weight", "bias", "out"), f"*{name}")
        moment_types = {"means": "*fp32", "squares": "*fp32"}
        of_parts = dict.fromkeys(("pixels", "parts", "part_pixels", "bucket"), "i32")
        for channels, rows in ((320, 32), (2560, 16)):
            layout, group = channel_layout(channels, 32), channels // 32
            moments = {"channels": channels, "group": group, "used": layout.used}
            moments |= {"GROUPS": layout.groups, "LANES": layout.lanes, "ROWS": rows}
            types = {"x": f"*{name}", **moment_types, **of_parts}
            yield from compile_cases(_part_moments, f"group_norm moments {name} {channels}", types, moments)
            for silu in (False, True):
                constants = {**moments, "SILU": silu, "PARTS": _PARTS}
                types = {**tensors, **moment_types, **of_parts, "tiles": "i32", "tile_pixels": "i32", "eps": "fp32"}
                label = f"group_norm {name} {channels}{' silu' if silu else ''}"
                yield from compile_cases(_normalize_tiles, label, types, constants)
            # `parts`, the number of partial moments, is 1 after `_join_moments`. This case is compiled too, because
            # Triton turns an argument of 1 into a constant.
            constants = {**moments, "SILU": True, "PARTS": 1, "parts": 1}
            types = {argument: kind for argument, kind in types.items() if argument != "parts"}
            yield from compile_cases(_normalize_tiles, f"group_norm {name} {channels} of one part", types, constants)
        types = {**moment_types, "mean": "*fp32", "square": "*fp32", **of_parts}
        joined = {"groups": 32, "group": 4, "PARTS": _MOST_PARTS, "GROUPS": _JOINED_GROUPS}
        if name == "fp32":  # compiled once, since moments are float32 for inputs of all dtypes
            yield from compile_cases(_join_moments, "group_norm joined", types, joined)
        for channels, pixels in ((1280, 64), (640, 1024), (1280, 1024)):
            group = channels // 32
            is_held = math.prod(_tile(pixels, group, is_held=True)) <= _MAX_HELD_ELEMENTS
            wide, rows = _tile(pixels, group, is_held=is_held)
            sizes = {"HELD": is_held, "WIDE": wide, "ROWS": rows}
            types = {**tensors, "pixels": "i32", "bucket": "i32", "eps": "fp32"}
            constants = {"channels": channels, "group": group, "SILU": True, **sizes}
            yield from compile_cases(_normalize_strip, f"group_norm strip {name} {channels} {pixels}", types, constants)


def _split_pixels(pixels: int, blocks: int) -> tuple[int, int]:
    """Return the number of pixels of a part, and the number of parts, of a picture with `pixels` pixels.

    The channels of a picture take `blocks` programs for each part. No part is empty, since the kernels' unrolled loops
    do not check for empty parts.
    """
    is_large = pixels > _LARGE
    most, programs = (_MOST_PARTS, _MOST_PROGRAMS) if is_large else (_PARTS, _PROGRAMS)
    count = max(1, min(most, pixels // _PIXELS, triton.cdiv(programs, blocks)))
    part_pixels = triton.cdiv(pixels, count)
    return part_pixels, triton.cdiv(pixels, part_pixels)


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups:
        raise InvalidRequest(
            f"a tensor {list(x.shape)} does not divide into {groups} groups",
            allowed=f"[B, C, h, w] with C divisible by {groups}",
        )
    if weight.shape != (x.shape[1],) or bias.shape != (x.shape[1],):
        raise InvalidRequest(
            f"weight and bias have shapes {list(weight.shape)} and {list(bias.shape)}",
            allowed=f"[{x.shape[1]}], one for each channel",
        )
    return x.contiguous(memory_format=torch.channels_last)
