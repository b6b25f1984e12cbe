"""Sampling variants: axes from conservative to aggressive, their combinations and estimated costs."""

from dataclasses import replace

import pytest

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.search.sampling_variants import (
    apply_variant,
    combine_levels,
    list_search_axes,
    request_fields,
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


def test_combinations_take_at_most_one_rung_of_each_ladder() -> None:
    passing = {"steps": [{"steps": "12"}, {"steps": "9"}], "guidance": [{"guidance_interval": "0-0.6"}]}
    combinations = combine_levels(passing)
    assert len(combinations) == 3 * 2 - 1
    assert {"steps": "9", "guidance_interval": "0-0.6"} in combinations
    assert combine_levels({}) == []


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
