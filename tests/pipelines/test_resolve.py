from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core import ImageRequest
from stillhouse.diffusion import SAMPLERS, classifier_free
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.manifest import Distilled, StepCache
from stillhouse.pipelines.resolve import resolve
from tests.pipelines.test_manifest import MINIMAL

MANIFEST = replace(MINIMAL, granularity=16)
CUT = replace(MANIFEST, step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx"))
IMAGE = np.zeros((48, 32, 3), np.uint8)
MASK = np.zeros((48, 32), np.uint8)


def test_defaults_are_filled_in() -> None:
    full = resolve(MANIFEST, ImageRequest("a circle", seed=7)).request
    assert (full.steps, full.guidance, full.sampler, full.width, full.height) == (35, 5.0, "ddim", 64, 64)
    assert full.prompt == "a circle" and full.seed == 7 and full.strength is None
    assert (full.guidance_interval, full.cache_interval) == ((0.0, 1.0), 1)


def test_the_manifest_may_shorten_guidance_and_keep_features() -> None:
    manifest = replace(CUT, defaults=replace(CUT.defaults, guidance_interval=(0.1, 0.7), cache_interval=3))
    plan = resolve(manifest, ImageRequest("")).plan
    assert (plan.guidance.interval, plan.cache_interval) == ((0.1, 0.7), 3)
    plan = resolve(manifest, ImageRequest("", guidance_interval=(0.0, 1.0), cache_interval=1)).plan
    assert (plan.guidance.interval, plan.cache_interval) == ((0.0, 1.0), 1)


def test_kept_features_need_a_network_that_is_cut() -> None:
    said = (
        "cache_interval is 2 for tiny, whose denoiser is not split for caching; "
        "allowed: cache_interval 1; .*`stillhouse accelerate`"
    )
    with pytest.raises(InvalidRequest, match=said):
        resolve(MANIFEST, ImageRequest("", cache_interval=2))
    assert resolve(CUT, ImageRequest("", cache_interval=2)).plan.cache_interval == 2


@pytest.mark.parametrize(
    ("fields", "size", "strength"),
    [
        ({"image": IMAGE}, (32, 48), 0.8),
        ({"image": IMAGE, "mask": MASK}, (32, 48), 1.0),
        ({"image": IMAGE, "strength": 0.5, "width": 32}, (32, 48), 0.5),
        ({"height": 16}, (64, 16), None),
    ],
)
def test_size_and_strength(fields: dict[str, Any], size: tuple[int, int], strength: float | None) -> None:
    full = resolve(MANIFEST, ImageRequest("", **fields)).request
    assert (full.width, full.height) == size
    assert full.strength == strength


@given(
    steps=st.none() | st.integers(1, 1000),
    guidance=st.none() | st.floats(0, 30),
    sampler=st.none() | st.sampled_from(sorted(SAMPLERS)),
    width=st.none() | st.integers(1, 64).map(lambda size: 16 * size),
    eta=st.just(0.0),
    interval=st.none() | st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
    cache_interval=st.none() | st.integers(1, 1000),
)
def test_a_resolved_request_resolves_to_itself(**fields: Any) -> None:
    fields["guidance_interval"] = fields.pop("interval")
    manifest = replace(CUT, sampling=replace(CUT.sampling, spacing="trailing"))
    request = ImageRequest("", **fields)
    resolved = resolve(manifest, request)
    again = resolve(manifest, resolved.request)
    full = resolved.request
    assert all(getattr(full, name) == getattr(again.request, name) for name in ImageRequest.__dataclass_fields__)
    assert (resolved.plan, resolved.batch_key) == (again.plan, again.batch_key)
    assert resolved.plan.grid.steps == full.steps
    assert resolved.batch_key == (full.width, full.height)


def test_a_network_that_is_told_its_guidance_takes_one_row() -> None:
    manifest = replace(MANIFEST, family_options={"in_channels": 4, "guidance_channels": 8})
    assert resolve(manifest, ImageRequest("", guidance=9.0)).plan.guidance == classifier_free(1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: a whole number from 1 to 1000"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 1001}, "steps is 1001"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"sampler": "dimm"}, "there is no sampler 'dimm'; allowed: ddim, .*did you mean 'ddim'"),
        ({"guidance": -1.0}, "guidance is -1.0; allowed: a number from 0 to 1000"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"width": 63}, r"width is 63; allowed: multiples of 16; try 48 or 64"),
        ({"height": 7}, r"height is 7; allowed: multiples of 16; try 16"),
        ({"width": 0}, "width is 0; allowed: a whole number from 1 to 8192"),
        ({"height": 1 << 20}, "height is 1048576"),
        ({"strength": 0.5}, "strength without an image; .*give an image"),
        ({"mask": MASK}, "mask without an image"),
        ({"image": IMAGE, "strength": 0.0}, "strength"),
        ({"image": IMAGE, "strength": 1.5}, "strength is 1.5; allowed: a number from 0 to 1"),
        ({"image": IMAGE, "strength": 0.01}, "leaves no step.*raise the strength"),
        (
            {"image": IMAGE, "width": 64},
            "the image is 32x48, but the request's size is 64x48; .*leave the size out, or resize the image",
        ),
        ({"image": IMAGE[:47]}, "height is 47; allowed: multiples of 16; try 32 or 48 and resize the image"),
        ({"image": IMAGE[..., 0]}, r"image is uint8 \[48, 32\]; allowed: uint8 \[height, width, 3\]"),
        ({"image": IMAGE.astype(float)}, r"image is float64"),
        ({"image": IMAGE, "mask": MASK[:16]}, "the mask is 32x16, but the image is 32x48; .*resize the mask"),
        ({"image": IMAGE, "mask": MASK[..., None]}, r"mask is uint8 \[48, 32, 1\]"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ({"guidance_interval": (0.5,)}, "guidance_interval is .*; allowed: two numbers from 0 to 1"),
        ({"cache_interval": 0}, "cache_interval is 0; allowed: a whole number from 1 to 1000"),
        ({"cache_interval": 2.5}, "cache_interval is 2.5"),
        ({"negative_prompt": None}, "negative_prompt is None; allowed: a text"),
        ({"eta": 0.5, "sampler": "euler"}, "eta is 0.5 with sampler euler"),
    ],
)
def test_what_cannot_be_done(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resolve(MANIFEST, ImageRequest("", **fields))


@pytest.mark.parametrize(("fields", "missing"), [({}, "no image"), ({"image": IMAGE}, "no mask")])
def test_a_repainting_pipeline_needs_both(fields: dict[str, Any], missing: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"{missing} for tiny, which is an inpainting model; allowed: an image and a mask"
    ):
        resolve(replace(MANIFEST, family_options={"in_channels": 9}), ImageRequest("", **fields))


STUDENT = replace(
    MANIFEST,
    family_options={"in_channels": 4, "guidance_channels": 8},
    distilled=Distilled((999.0, 656.0, 342.0), (1.0, 6.0), "progressive", ("tiny", "0" * 64)),
    defaults=replace(MANIFEST.defaults, steps=3, guidance=3.0),
)


def test_a_student_walks_its_own_grid() -> None:
    plan = resolve(STUDENT, ImageRequest("")).plan
    assert plan.grid.timesteps.tolist() == [999.0, 656.0, 342.0]
    assert resolve(STUDENT, ImageRequest("", sampler="euler")).plan.grid == plan.grid


def test_a_student_that_learnt_its_guidance_only_walks_any_grid() -> None:
    assert STUDENT.distilled is not None
    free = replace(STUDENT, distilled=replace(STUDENT.distilled, timesteps=None))
    assert resolve(free, ImageRequest("", steps=9, sampler="dpmpp_2m")).plan.grid.steps == 9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 9}, "steps is 9 for tiny; allowed: 3, which it was distilled to; leave the steps out"),
        ({"sampler": "dpmpp_2m"}, "sampler is dpmpp_2m for tiny; allowed: ddim, euler"),
        ({"guidance": 7.5}, "guidance is 7.5 for tiny; allowed: 1 to 6, its training range"),
        ({"eta": 0.5}, "eta is 0.5 for tiny; allowed: eta 0"),
        ({"negative_prompt": "blur"}, "a negative prompt for tiny"),
    ],
)
def test_a_student_refuses_what_it_was_not_taught(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        resolve(STUDENT, ImageRequest("", **fields))
