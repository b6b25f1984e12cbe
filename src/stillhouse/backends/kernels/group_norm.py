"""GroupNorm (arXiv 1803.08494) of pictures in NHWC, channels last, with SiLU behind it.

A group is a strip of neighbouring channels over all pixels: ten of 320 in Stable Diffusion. Reading group by group
would take twenty bytes out of every 640. So programs take tiles of many pixels and of as many whole groups as fit into
a stretch of lanes, and read whole lines:

1. `_moments`: of each part of the pixels and each channel, the mean and the sum of squares around it.
2. `_normalised`: joins the parts' moments to those of the groups (Chan, Golub and LeVeque, COMPSTAT 1982), which
   cancels nothing where the mean is large, then normalises, scales and applies SiLU.

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

from stillhouse.backends.kernels.launch import DTYPES, Specimen, bucket, configs, launches
from stillhouse.errors import InvalidRequest

_PARTS = 32
"""Of a picture's pixels, at most."""
_PIXELS = 64
"""Of one part, at least."""
_LANES = 128


@triton.autotune(configs=configs(ROWS=(16, 32, 64)), key=["channels", "bucket"])
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
    taken: tl.constexpr,
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
    mean = tl.zeros((LANES,), tl.float32)
    square = tl.zeros((LANES,), tl.float32)
    count = 0.0
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & known[None, :]
        at = (picture * pixels + row)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        fresh = tl.minimum(ROWS, end - first).to(tl.float32)
        fresh_mean = tl.sum(value, axis=0) / fresh
        centred = tl.where(inside, value - fresh_mean[None, :], 0.0)
        total = count + fresh
        apart = fresh_mean - mean
        mean += apart * (fresh / total)
        square += tl.sum(centred * centred, axis=0) + apart * apart * (count * fresh / total)
        count = total
    at = program.to(tl.int64) * channels + channel
    tl.store(means + at, mean, mask=known)
    tl.store(squares + at, square, mask=known)


@triton.autotune(configs=configs(ROWS=(16, 32, 64)), key=["channels", "bucket"])
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
    tiles,
    tile_pixels,
    bucket,
    eps,
    channels: tl.constexpr,
    group: tl.constexpr,
    taken: tl.constexpr,
    SILU: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    picture = (program // tiles).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = tl.program_id(1) * taken + lane
    known = (lane < taken) & (channel < channels)

    part = tl.arange(0, PARTS)
    count = tl.minimum(tl.maximum(pixels - part * part_pixels, 0), part_pixels).to(tl.float32)
    count = tl.where(part < parts, count, 0.0)[:, None]
    present = (part < parts)[:, None] & known[None, :]
    at = (picture * parts + part)[:, None] * channels + channel[None, :]
    mean = tl.load(means + at, mask=present, other=0.0)
    square = tl.load(squares + at, mask=present, other=0.0)
    same = (lane[:, None] // group) == (lane[None, :] // group)
    size = pixels * group
    centre = tl.sum(tl.where(same, tl.sum(count * mean, axis=0)[:, None], 0.0), axis=0) / size
    apart = tl.where(present, mean - centre[None, :], 0.0)
    spread = tl.sum(square + count * apart * apart, axis=0)
    variance = tl.sum(tl.where(same, spread[:, None], 0.0), axis=0) / size

    gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) * tl.rsqrt(variance + eps)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    begin = program % tiles * tile_pixels
    end = tl.minimum(begin + tile_pixels, pixels)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & known[None, :]
        at = (picture * pixels + row)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value = (value - centre[None, :]) * gain[None, :] + shift[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(out + at, value, mask=inside)


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
    part_pixels, parts = _parts(pixels)
    means = x.new_empty(batch, parts, channels, dtype=torch.float32)
    squares = torch.empty_like(means)
    size = bucket(pixels)
    told = (pixels, parts, part_pixels)
    lanes = (layout.taken, layout.lanes)
    _moments[batch * parts, layout.blocks](x, means, squares, *told, size, channels, *lanes)
    _normalised[batch * parts, layout.blocks](
        x,
        weight.contiguous(),
        bias.contiguous(),
        means,
        squares,
        out,
        *told,
        parts,
        part_pixels,
        size,
        eps,
        channels,
        channels // groups,
        layout.taken,
        silu,
        triton.next_power_of_2(parts),
        layout.lanes,
    )
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
        blocks: programs for all channels.
    """

    lanes: int
    taken: int
    blocks: int


def layout_of(channels: int, groups: int) -> Layout:
    """As many whole groups as fit into a stretch of lanes.

    >>> layout_of(320, 32)
    Layout(lanes=128, taken=120, blocks=3)
    """
    group = channels // groups
    lanes = max(_LANES, triton.next_power_of_2(group))
    taken = lanes // group * group
    return Layout(lanes, taken, triton.cdiv(channels, taken))


def specimens() -> Iterator[Specimen]:
    """Both passes in each dtype, in Stable Diffusion's narrowest and widest blocks."""
    for name in DTYPES.values():
        for channels in (320, 2560):
            layout = layout_of(channels, 32)
            numbers = dict.fromkeys(("pixels", "parts", "part_pixels", "bucket"), "i32")
            moments = {"channels": channels, "taken": layout.taken, "LANES": layout.lanes, "ROWS": 32}
            kept = {"means": "*fp32", "squares": "*fp32"}
            told = {"x": f"*{name}", **kept, **numbers, **dict.fromkeys(moments, "constexpr")}
            yield Specimen(f"group_norm moments {name} {channels}", _moments.fn, told, moments)
            for silu in (False, True):
                constants = {**moments, "group": channels // 32, "SILU": silu, "PARTS": _PARTS}
                tensors = dict.fromkeys(("x", "weight", "bias", "out"), f"*{name}")
                more = {**numbers, "tiles": "i32", "tile_pixels": "i32", "eps": "fp32"}
                told = {**tensors, **kept, **more, **dict.fromkeys(constants, "constexpr")}
                called = f"group_norm {name} {channels}{' silu' if silu else ''}"
                yield Specimen(called, _normalised.fn, told, constants)


def _parts(pixels: int) -> tuple[int, int]:
    """Pixels of each part, and how many parts there are."""
    wanted = min(_PARTS, max(1, pixels // _PIXELS))
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
