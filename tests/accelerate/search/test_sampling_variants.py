"""Sampling variants: axes from conservative to aggressive, their combinations and estimated costs."""

from dataclasses import replace

import pytest

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.search.sampling_variants import (
    apply_variant,
    list_search_axes,
    list_variants,
    request_fields,
    sampling_plan,
    split_options,
    variant_candidate,
    variant_cost,
)
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Distilled, Manifest, read_manifest


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(find_pipeline("shapes"))


def test_every_ladder_grows_bolder(manifest: Manifest) -> None:
    axes = list_search_axes(manifest, can_cache=True)
    assert [axis.name for axis in axes] == ["steps", "cache_interval", "guidance"]
    plain = variant_cost(manifest, {})
    for axis in axes:
        options = [{name: v for name, v in level.items() if name != "cache_interval"} for level in axis.levels]
        costs = [variant_cost(manifest, level) for level in options]
        assert costs == sorted(costs, reverse=True)
        assert plain >= costs[0]


def test_a_pipeline_without_guidance_has_no_ladder_for_it(manifest: Manifest) -> None:
    unguided = replace(manifest, defaults=replace(manifest.defaults, guidance=1.0))
    assert [axis.name for axis in list_search_axes(unguided, can_cache=False)] == ["steps"]
    few = replace(manifest, defaults=replace(manifest.defaults, steps=4))
    assert all(axis.name != "steps" for axis in list_search_axes(few, can_cache=False))


def test_cost_counts_rows(manifest: Manifest) -> None:
    assert variant_cost(manifest, {}) == 2 * manifest.defaults.steps
    assert variant_cost(manifest, {"steps": "10", "sampler": "ddim"}) == 20
    half = variant_cost(manifest, {"guidance_interval": "0-0.5"})
    assert half == pytest.approx(1.5 * manifest.defaults.steps, abs=2)


def test_variants_have_at_most_one_level_of_each_axis_and_no_two_have_one_plan(manifest: Manifest) -> None:
    variants = list_variants(manifest, can_cache=True)
    assert {"sampler": "ddim", "steps": "5", "guidance_interval": "0-0.8"} in variants
    assert {"sampler": "dpmpp_2m", "steps": "10", "cache_interval": "2", "guidance_interval": "0-0.6"} in variants
    assert {} not in variants, "the pipeline's own options are no variant"
    plans = [sampling_plan(manifest, options) for options in variants]
    keys = {(plan.sampler, plan.grid, plan.rows, plan.cache_interval) for plan in plans}
    assert len(keys) == len(variants)
    without = list_variants(manifest, can_cache=False)
    assert 0 < len(without) < len(variants) and all("cache_interval" not in options for options in without)


def test_a_plan_caches_whether_the_manifest_can_or_not(manifest: Manifest) -> None:
    plan = sampling_plan(manifest, {"steps": "6", "cache_interval": "3"})
    assert (len(plan.evaluations), plan.cache_interval) == (6, 3)
    assert variant_cost(manifest, {"steps": "6", "cache_interval": "3"}) == pytest.approx(2 * 2 + 4 * 2 * 0.2)


def test_a_variant_names_its_networks_beside_its_sampling_options() -> None:
    options = {"steps": "5", "denoiser": "openvino f32, bf16", "decoder": "openvino f32"}
    assert split_options(options) == ({"steps": "5"}, {"denoiser": "openvino f32, bf16", "decoder": "openvino f32"})
    assert request_fields(options) == {"steps": 5}


def test_options_become_fields_and_defaults(manifest: Manifest) -> None:
    candidate = variant_candidate({"sampler": "dpmpp_2m", "steps": "12", "guidance_interval": "0.1-0.7"})
    assert request_fields(candidate.options) == {
        "sampler": "dpmpp_2m",
        "steps": 12,
        "guidance_interval": (0.1, 0.7),
    }
    changed = apply_variant(candidate, manifest.defaults)
    assert (changed.sampler, changed.steps, changed.guidance_interval) == ("dpmpp_2m", 12, (0.1, 0.7))
    assert apply_variant(Candidate("pipeline", "openvino", "baseline"), manifest.defaults) == manifest.defaults


def test_a_student_of_one_grid_has_no_ladder(manifest: Manifest) -> None:
    distilled = Distilled((999.0, 499.0), (1.0, 5.0), "progressive", ("shapes", ""))
    student = replace(manifest, distilled=distilled, family_options={"in_channels": 4, "guidance_channels": 256})
    assert list_search_axes(student, can_cache=True) == []
    inside = replace(student, distilled=replace(distilled, timesteps=None))
    assert [axis.name for axis in list_search_axes(inside, can_cache=False)] == ["steps"]
