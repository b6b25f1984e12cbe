"""Every kernel in Triton's interpreter against its reference in float64, and what none of them takes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from stillhouse.backends.kernels import cast, geglu, group_norm, guided_step, layer_norm, silu
from stillhouse.backends.kernels.group_norm import channel_layout
from stillhouse.diffusion import step
from stillhouse.errors import InvalidRequest, UnsupportedPrecision
from tests.backends.kernels.cases import ALONE, CASES, TAILS, TRAJECTORIES, Case

TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Beside the largest value: sums of a few hundred terms in float32, of which each rounds at 6e-8; then one rounding to
the result's own dtype, which is half of 2^-10 and of 2^-7 where a chip rounds, and twice that in the interpreter, which
cuts bfloat16 off."""


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What became of each case, by name."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.backends.kernels.interpreted"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_comes_to_what_its_reference_says(case: Case, interpreted: dict[str, Any]) -> None:
    found = interpreted[case.name]
    dtype = case.options.get("to", case.dtype)
    # Of numbers around a thousand a float32 keeps 6e-5, and the norm takes their mean away.
    bound = 1e-4 if "mean" in case.options else TOLERANCE[dtype]
    assert found["finite"] and found["error"] <= bound
    assert set(found["dtypes"]) == {dtype}
    if case.kernel == "group_norm":
        assert found["channels_last"] and found["shapes"] == [list(case.shape)]
    if case.kernel == "geglu":
        assert found["shapes"] == [[*case.shape[:-1], case.shape[-1] // 2]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_of_halves_gelu_errs_by_their_rounding(dtype: str, interpreted: dict[str, Any]) -> None:
    """From -6 to 6 by no more than the half of a last place, or in the interpreter, which cuts bfloat16 off, by a whole
    one; and by what its share of the normal distribution errs at most."""
    assert interpreted[f"{TAILS} {dtype}"]["error"] <= 0


def test_pictures_of_every_kind_are_moved_by_one_kernel(interpreted: dict[str, Any]) -> None:
    """As on a GPU `diffusion.advance` moves a mixed batch; five steps of float32 round differently by little."""
    assert interpreted[TRAJECTORIES]["error"] <= 1e-5


def test_a_batch_of_one_two_and_three_rows_is_each_picture_alone(interpreted: dict[str, Any]) -> None:
    """Bit for bit, at every evaluation, where the kernel takes the rows of the longest list for all of them."""
    assert interpreted[ALONE]["different"] == []


def test_on_a_processor_an_op_is_its_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 6, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    row = x.flatten(1)[:, :8].contiguous()
    pairs = [
        (silu.silu(x), silu.reference(x)),
        (cast.cast(x, torch.float16), cast.reference(x, torch.float16)),
        # Its result is contiguous. AVX2's code for GELU rounds the ends of a row otherwise than its middle.
        (geglu.geglu(x, True), geglu.reference(x.contiguous(), True)),
        (layer_norm.layer_norm(row, weight, bias, 1e-5), layer_norm.reference(row, weight, bias, 1e-5)),
        (group_norm.group_norm(x, weight, bias, 2, 1e-5, True), group_norm.reference(x, weight, bias, 2, 1e-5, True)),
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert all(ours.stride() == x.stride() for ours in (pairs[0][0], pairs[1][0], pairs[4][0]))


def _calls() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every op on tensors in both orders of their axes, on a slice of a larger one, and on nothing."""
    weight, bias = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)
    rows = torch.tensor([[0, 1], [2, 2]], dtype=torch.int32)
    plain = torch.linspace(-2, 2, 2 * 8 * 6 * 4).reshape(2, 8, 6, 4)
    for x in (plain, plain.contiguous(memory_format=torch.channels_last), plain[..., ::2, 1:], plain[:0]):
        yield silu.silu, (x,)
        yield cast.cast, (x, torch.float16)
        yield cast.cast, (x, torch.float32)
        yield group_norm.group_norm, (x, weight, bias, 2, 1e-5, True)
    for tokens in (plain.flatten(1).reshape(-1, 8), plain.flatten(1).reshape(-1, 16)[:, ::2]):
        yield geglu.geglu, (tokens, True)
        yield layer_norm.layer_norm, (tokens, weight, bias, 1e-5)
        yield layer_norm.add_layer_norm, (tokens, tokens + 1, weight, bias, 1e-5)
    several, three = plain.repeat(2, 1, 1, 1), torch.tensor([[0, 1, 2], [3, 3, 3]], dtype=torch.int32)
    for previous in (None, plain + 1):
        yield guided_step.guided_step, (plain, several[:3], rows, torch.ones(2, 6), previous)
        yield guided_step.guided_step, (plain, several, None, torch.ones(2, 6), previous)
        yield guided_step.guided_step, (plain, several, three, torch.ones(2, 7), previous)


@pytest.mark.parametrize("call", list(_calls()), ids=lambda call: call[0]._qualname)
def test_the_compiler_may_trust_what_an_op_says_of_itself(call: tuple[Any, tuple[Any, ...]]) -> None:
    """torch's own checks of schema, of shapes and strides without numbers, and of tracing with open sizes."""
    op, arguments = call
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    assert set(torch.library.opcheck(op, arguments, test_utils=checks).values()) == {"SUCCESS"}


def test_what_no_kernel_computes_in_is_refused_with_what_they_do() -> None:
    doubles = torch.ones(2, 4, 2, 2, dtype=torch.float64)
    weight = torch.ones(4, dtype=torch.float64)
    rows, weights = torch.zeros(2, 2, dtype=torch.int32), torch.ones(2, 6)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: silu.silu(doubles),
        lambda: geglu.geglu(doubles),
        lambda: cast.cast(doubles, torch.float16),
        lambda: cast.cast(doubles.float(), torch.float64),
        lambda: layer_norm.layer_norm(doubles[..., 0, 0], weight, weight, 1e-5),
        lambda: group_norm.group_norm(doubles, weight, weight, 2, 1e-5),
        lambda: guided_step.guided_step(doubles, doubles, rows, weights),
        lambda: guided_step.guided_step(doubles.float(), doubles.float(), rows, weights, doubles),
    )
    for call in calls:
        with pytest.raises(UnsupportedPrecision, match="float64; allowed: float32, float16, bfloat16"):
            call()
    with pytest.raises(UnsupportedPrecision, match="int64"):
        silu.silu(torch.ones(3, dtype=torch.int64))


def test_the_kernel_takes_weights_in_the_order_of_trajectories() -> None:
    assert guided_step.STEP_WEIGHTS == step.STEP_WEIGHTS


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, few = torch.ones(2, 6, 2, 2), torch.ones(4)
    own = torch.ones(6)
    with pytest.raises(InvalidRequest, match="an even last axis"):
        geglu.geglu(torch.ones(2, 3))
    with pytest.raises(InvalidRequest, match="does not divide into 4 groups"):
        group_norm.group_norm(x, own, own, 4, 1e-5)
    with pytest.raises(InvalidRequest, match="one for each channel"):
        group_norm.group_norm(x, few, few, 2, 1e-5)
    with pytest.raises(InvalidRequest, match="one for each column"):
        layer_norm.layer_norm(torch.ones(2, 6), few, few, 1e-5)
    with pytest.raises(
        InvalidRequest,
        match=r"residual \[3, 6\] torch.float32 does not fit x \[2, 6\] torch.float32; allowed: the same",
    ):
        layer_norm.add_layer_norm(torch.ones(2, 6), torch.ones(3, 6), own, own, 1e-5)
    rows, weights = torch.zeros(2, 2, dtype=torch.int32), torch.ones(2, 6)
    with pytest.raises(InvalidRequest, match="one size"):
        guided_step.guided_step(x, torch.ones(4, 6, 2, 3), rows, weights)
    with pytest.raises(InvalidRequest, match="do not fit 2 pictures"):
        guided_step.guided_step(x, torch.ones(4, 6, 2, 2), rows.long(), weights)
    with pytest.raises(
        InvalidRequest,
        match=r"there are 3 rows of output for 2 pictures; allowed: 4 \(two for each picture\), or the argument `rows`",
    ):
        guided_step.guided_step(x, torch.ones(3, 6, 2, 2), None, weights)
    with pytest.raises(
        InvalidRequest,
        match=r"rows \[2, 3\] and weights \[2, 6\] do not fit 2 pictures; "
        r"allowed: rows int32 \[2, 1 \+ T\], weights \[2, 5",
    ):
        guided_step.guided_step(x, torch.ones(6, 6, 2, 2), torch.zeros(2, 3, dtype=torch.int32), weights)
    with pytest.raises(
        InvalidRequest, match=r"previous is \[1, 6, 2, 2\], but z is \[2, 6, 2, 2\]; allowed: the same shape"
    ):
        guided_step.guided_step(x, torch.ones(4, 6, 2, 2), rows, weights, torch.ones(1, 6, 2, 2))


@pytest.mark.parametrize("channels", [32, 128, 256, 320, 512, 640, 960, 1280, 1920, 2560, 4096, 8192])
def test_a_program_takes_whole_groups_and_all_channels_are_taken(channels: int) -> None:
    """Of Stable Diffusion's widths none wastes more than three lanes of eight."""
    layout = channel_layout(channels, 32)
    assert layout.used % (channels // 32) == 0 and layout.used <= layout.lanes
    assert (layout.blocks - 1) * layout.used < channels <= layout.blocks * layout.used
    assert layout.used >= 0.6 * layout.lanes


@pytest.mark.parametrize(
    ("shape", "dtype", "way"),
    [
        ((2, 1280, 8, 8), torch.float16, "held"),
        ((2, 1280, 16, 16), torch.float32, "held"),
        ((2, 640, 32, 32), torch.float16, "held"),
        ((2, 1280, 32, 32), torch.float16, "cached"),
        ((2, 1280, 32, 32), torch.float32, "parts"),  # two lines a pixel
        ((2, 640, 64, 64), torch.float16, "parts"),  # a line a pixel, of which a third is its own
        ((1, 128, 512, 512), torch.float16, "parts"),
    ],
    ids=str,
)
def test_a_strip_that_one_multiprocessor_holds_is_read_by_one_program(
    shape: tuple[int, ...], dtype: torch.dtype, way: str
) -> None:
    assert group_norm.read_strategy(torch.empty(shape, dtype=dtype, device="meta"), 32) == way


@pytest.mark.parametrize("side", [8, 64, 128, 129, 256, 512, 1024])
@pytest.mark.parametrize("channels", [128, 256, 320, 512, 1280])
def test_a_pictures_parts_give_a_gpu_enough_to_do_and_none_of_them_is_empty(side: int, channels: int) -> None:
    pixels, blocks = side * side, channel_layout(channels, 32).blocks
    part_pixels, parts = group_norm._split_pixels(pixels, blocks)
    assert (parts - 1) * part_pixels < pixels <= parts * part_pixels and parts <= 512
    if side > 128:
        assert parts * blocks > 400


def test_nothing_is_what_becomes_of_nothing() -> None:
    assert silu.silu(torch.ones(0, 3)).shape == (0, 3)
    assert geglu.geglu(torch.ones(0, 4)).shape == (0, 2)
