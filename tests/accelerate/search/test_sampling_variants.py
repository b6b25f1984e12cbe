"""Ways to walk: ladders from gentle to bold, their combinations, and what each should cost."""

from dataclasses import replace

import pytest

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.search.sampling_variants import combinations, cost, ladders, request_fields, walk, walked
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Distilled, Manifest, read_manifest


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(find_pipeline("shapes"))


def test_every_ladder_grows_bolder(manifest: Manifest) -> None:
    found = ladders(manifest, caches=True)
    assert [ladder.kind for ladder in found] == ["steps", "cache_interval", "guidance"]
    plain = cost(manifest, {})
    for ladder in found:
        options = [{name: v for name, v in rung.items() if name != "cache_interval"} for rung in ladder.rungs]
        costs = [cost(manifest, rung) for rung in options]
        assert costs == sorted(costs, reverse=True)
        assert plain >= costs[0]


def test_a_pipeline_without_guidance_has_no_ladder_for_it(manifest: Manifest) -> None:
    unguided = replace(manifest, defaults=replace(manifest.defaults, guidance=1.0))
    assert [ladder.kind for ladder in ladders(unguided, caches=False)] == ["steps"]
    few = replace(manifest, defaults=replace(manifest.defaults, steps=4))
    assert all(ladder.kind != "steps" for ladder in ladders(few, caches=False))


def test_cost_counts_rows(manifest: Manifest) -> None:
    assert cost(manifest, {}) == 2 * manifest.defaults.steps
    assert cost(manifest, {"steps": "10", "sampler": "ddim"}) == 20
    half = cost(manifest, {"guidance_interval": "0-0.5"})
    assert half == pytest.approx(1.5 * manifest.defaults.steps, abs=2)


def test_combinations_take_at_most_one_rung_of_each_ladder() -> None:
    passing = {"steps": [{"steps": "12"}, {"steps": "9"}], "guidance": [{"guidance_interval": "0-0.6"}]}
    found = combinations(passing)
    assert len(found) == 3 * 2 - 1
    assert {"steps": "9", "guidance_interval": "0-0.6"} in found
    assert combinations({}) == []


def test_options_become_fields_and_defaults(manifest: Manifest) -> None:
    candidate = walk({"sampler": "dpmpp_2m", "steps": "12", "guidance_interval": "0.1-0.7"})
    assert request_fields(candidate.options) == {
        "sampler": "dpmpp_2m",
        "steps": 12,
        "guidance_interval": (0.1, 0.7),
    }
    changed = walked(candidate, manifest.defaults)
    assert (changed.sampler, changed.steps, changed.guidance_interval) == ("dpmpp_2m", 12, (0.1, 0.7))
    assert walked(Candidate("pipeline", "openvino", "loop"), manifest.defaults) == manifest.defaults


def test_a_student_of_one_grid_has_no_ladder(manifest: Manifest) -> None:
    learnt = Distilled((999.0, 499.0), (1.0, 5.0), "progressive", ("shapes", ""))
    student = replace(manifest, distilled=learnt, guidance_channels=256)
    assert ladders(student, caches=True) == []
    inside = replace(student, distilled=replace(learnt, timesteps=None))
    assert [ladder.kind for ladder in ladders(inside, caches=False)] == ["steps"]
