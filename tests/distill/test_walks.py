"""Walks: what the teacher passes through, kept at a student's levels; and what a student learns from them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stillhouse
from stillhouse.core import ImageRequest
from stillhouse.diffusion import Grid, Schedule, grid, noise_levels
from stillhouse.distill import parts
from stillhouse.distill.parts import keep
from stillhouse.distill.rounds import plan_edits, refined
from stillhouse.distill.walks import SOLVER, Plan, Walked, asked_at, awaited_walks, encoded_walks, walks_of
from stillhouse.models.pipeline import Draft, Pipeline
from stillhouse.models.shapes.caption import is_held_out, seen_caption

STEPS = 6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return stillhouse.load("shapes", backend="onnxruntime", precision="f32")


@pytest.fixture(scope="module")
def served(pipeline: Pipeline) -> Grid:
    return grid(pipeline.manifest.schedule, 3)


@pytest.fixture(scope="module")
def walked(pipeline: Pipeline, served: Grid) -> list[Walked]:
    return list(walks_of(pipeline, seen_caption, Plan(served, STEPS, 3, (2.0, 4.0), seed=1)))


@pytest.fixture(scope="module")
def edited(pipeline: Pipeline, served: Grid) -> list[Walked]:
    return list(walks_of(pipeline, seen_caption, with_edits(pipeline, served)))


def with_edits(pipeline: Pipeline, served: Grid, together: int = 8) -> Plan:
    edits = plan_edits(pipeline.manifest.schedule, (STEPS, 3), (0.3, 0.8))
    grids = {strength: one.student for strength, one in edits.items()}
    return Plan(served, STEPS, 6, (2.0, 4.0), seed=1, edits=grids, together=together)


def test_a_walk_is_the_teachers_own_at_the_students_levels(
    pipeline: Pipeline, served: Grid, walked: list[Walked]
) -> None:
    fine = refined(pipeline.manifest.schedule, served, STEPS)
    rng = np.random.default_rng((1, 6, 0))
    caption, scale, seed = seen_caption(rng), float(rng.uniform(2.0, 4.0)), int(rng.integers(2**62))
    assert (walked[0].caption, walked[0].guidance) == (caption, scale)
    draft = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    alone = Draft(
        replace(draft.course, grid=fine),
        draft.latents,
        draft.conditioning,
        draft.unconditional,
        request=draft.request,
        started=0.0,
    )
    levels = [alone.latents]
    while not alone.is_done:
        pipeline.advance([alone])
        if alone.is_done or fine.points[alone.index] in served.points:
            levels.append(alone.latents)
    np.testing.assert_array_equal(walked[0].latents, np.stack(levels))


def test_walks_are_decided_by_seed_and_number_alone(pipeline: Pipeline, served: Grid, walked: list[Walked]) -> None:
    (last,) = walks_of(pipeline, seen_caption, Plan(served, STEPS, 3, (2.0, 4.0), seed=1), begin=2)
    np.testing.assert_array_equal(last.latents, walked[2].latents)
    assert last.caption == walked[2].caption and last.guidance == walked[2].guidance
    assert all(walk.latents.shape == (4, 4, 16, 16) and 2 <= walk.guidance <= 4 for walk in walked)
    assert not any(is_held_out(walk.caption) for walk in walked)


def test_every_second_walk_is_an_edit_of_the_picture_before(
    pipeline: Pipeline, served: Grid, walked: list[Walked], edited: list[Walked]
) -> None:
    plan = with_edits(pipeline, served)
    assert [walk.kind > 0 for walk in edited] == [False, True] * 3
    for one, edit, alone in zip(edited[::2], edited[1::2], walked, strict=True):
        np.testing.assert_allclose(one.latents, alone.latents, atol=1e-5)
        first = [*plan.edits.values()][edit.kind - 1].points[0]
        noise = (edit.latents[0] - first.alpha * one.latents[-1]) / first.sigma
        assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1
        assert edit.latents.shape == one.latents.shape
        assert not is_held_out(edit.caption)


def test_an_edit_walks_on_from_its_level(pipeline: Pipeline, served: Grid, edited: list[Walked]) -> None:
    edit = edited[1]
    plan = with_edits(pipeline, served)
    strength, own = [*plan.edits.items()][edit.kind - 1]
    fine = refined(pipeline.manifest.schedule, own, max(3, round(STEPS * strength)))
    draft = pipeline.start(ImageRequest(edit.caption, guidance=edit.guidance, sampler=SOLVER))
    course = replace(draft.course, grid=fine)
    asked = (draft.conditioning, draft.unconditional)
    alone = Draft(course, edit.latents[0], *asked, request=draft.request, started=0.0)
    while not alone.is_done:
        pipeline.advance([alone])
    np.testing.assert_allclose(edit.latents[-1], alone.latents, atol=1e-5)


@pytest.mark.parametrize("begin", [1, 3, 4])
def test_walks_with_edits_go_on_from_any_number(
    pipeline: Pipeline, served: Grid, edited: list[Walked], begin: int
) -> None:
    rest = list(walks_of(pipeline, seen_caption, with_edits(pipeline, served, together=2), begin))
    assert [(walk.caption, walk.kind) for walk in rest] == [(walk.caption, walk.kind) for walk in edited[begin:]]
    for one, other in zip(rest, edited[begin:], strict=True):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


def test_what_is_kept_is_shown_again(
    pipeline: Pipeline, walked: list[Walked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 2)
    assert keep(lambda begin: walked[begin:], encoded_walks, tmp_path / "walks")
    walks = awaited_walks(tmp_path / "walks")
    assert len(walks) == 3 and walks.kinds.tolist() == [0, 0, 0]
    shown = walks.shown(torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([3, 1]))
    for row, (walk, place, reached) in enumerate([(walked[2], 1, 3), (walked[0], 0, 1)]):
        for tensor, wanted in (
            (shown.begun, walk.latents[0]),
            (shown.here, walk.latents[place]),
            (shown.reached, walk.latents[reached]),
        ):
            assert torch.equal(tensor[row], torch.from_numpy(wanted).half().float())
        states = torch.from_numpy(np.array(pipeline.encode_text(walk.caption)["encoder_hidden_states"]))
        assert torch.equal(shown.said["encoder_hidden_states"][row], states.half().float())
        assert float(shown.guidance[row]) == np.float32(walk.guidance)


def test_no_time_makes_none(pipeline: Pipeline, tmp_path: Path) -> None:
    def never(begin: int) -> Iterator[Walked]:
        raise AssertionError("there is no time for any")
        yield

    assert not keep(never, encoded_walks, tmp_path / "walks", deadline=0.0)


def test_a_teacher_of_another_schedule_is_asked_at_its_nearest_levels() -> None:
    own, theirs = Schedule(), Schedule(zero_terminal_snr=True)
    found = asked_at(own, grid(theirs, 4))
    assert found.timesteps[0] == 999, "pure noise is shown to it at its noisiest level"
    alphas, sigmas = noise_levels(own)
    for timestep, point in zip(found.timesteps.astype(int), grid(theirs, 4).points, strict=False):
        here = np.arctan2(sigmas[timestep], alphas[timestep])
        wanted = np.arctan2(point.sigma, point.alpha)
        others = np.abs(np.arctan2(sigmas, alphas) - wanted)
        assert abs(here - wanted) == others.min()
    assert asked_at(theirs, grid(theirs, 4)) == grid(theirs, 4)
