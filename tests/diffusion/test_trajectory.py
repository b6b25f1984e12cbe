from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion import (
    CLEAN,
    CONDITIONAL,
    INITIAL_STEP,
    NUMPY,
    SAMPLERS,
    Branch,
    Effect,
    Guidance,
    InpaintBlend,
    SamplingPlan,
    Schedule,
    Trajectory,
    add_noise,
    advance,
    classifier_free,
    gaussian,
    make_grid,
)
from stillhouse.errors import InvalidRequest
from tests.diffusion.plans import PIX2PIX, branches, sampling_plan, text

SHAPE = (2, 4, 4)
FLOW = Schedule("flow", shift=2.0)
BETAS = Schedule(zero_terminal_snr=True)


@dataclass
class Network:
    """A made-up network whose rows depend on nothing but themselves; it notes what it was asked."""

    calls: list[tuple[Array, Array, Mapping[str, NDArray[Any]]]] = field(default_factory=list)

    def __call__(self, rows: Array, timesteps: Array, conditioning: Mapping[str, NDArray[Any]]) -> Array:
        self.calls.append((rows, timesteps, conditioning))
        answers = [
            row[: SHAPE[0]] / (1 + np.abs(row[: SHAPE[0]])) + text.mean() + np.float32(timestep / 5000) + row[-1:]
            for row, timestep, text in zip(rows, timesteps, conditioning["text"], strict=True)
        ]
        return np.stack(answers).astype(np.float32)


def picture(plan: SamplingPlan, *effects: Effect, channels: Array | None = None) -> Trajectory:
    return Trajectory(plan, gaussian(plan.seed, INITIAL_STEP, SHAPE), branches(plan.seed + 1, channels), effects)


def finish(trajectory: Trajectory) -> Array:
    while not trajectory.is_done:
        advance([trajectory], Network())
    return trajectory.latents


@dataclass
class Full:
    """Arrays in a memory that has no room for the last noise that is placed."""

    left: int

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        self.left -= array.shape == SHAPE
        if self.left < 0:
            raise MemoryError
        return array

    fused_step = None
    stack, concatenate = NUMPY.stack, NUMPY.concatenate
    to_numpy, synchronize = NUMPY.to_numpy, NUMPY.synchronize


@st.composite
def plans(draw: st.DrawFn) -> SamplingPlan:
    sampler = draw(st.sampled_from(sorted(SAMPLERS)))
    schedule = draw(st.sampled_from([BETAS, FLOW, Schedule()]))
    walk = make_grid(schedule, draw(st.integers(1, 6)), sigmas=draw(st.sampled_from(["schedule", "karras"])))
    if draw(st.booleans()):
        walk = walk.start_at_strength(draw(st.floats(1 / walk.steps + 0.01, 1.0)) if walk.steps > 1 else 1.0)
    begin = draw(st.floats(0, 1))
    plan = sampling_plan(
        walk,
        sampler,
        draw(st.sampled_from(["sample", "v_prediction", "flow"])),
        guidance=draw(st.sampled_from([0.0, 1.0, 3.5, 7.5])),
        guidance_rescale=draw(st.sampled_from([0.0, 0.7])),
        guidance_interval=(begin, draw(st.floats(begin, 1))),
        eta=draw(st.floats(0, 1)) if sampler == "ddim" else 0.0,
        seed=draw(st.integers(0, 50)),
    )
    if draw(st.booleans()):
        return plan
    three = replace(PIX2PIX, interval=plan.guidance.interval, rescale=plan.guidance.rescale)
    return replace(plan, guidance=three)


def blend(seed: int) -> InpaintBlend:
    mask = (gaussian(seed, 5, (1, *SHAPE[1:])) > 0).astype(np.float32)
    return InpaintBlend(gaussian(seed, 6, SHAPE), mask, gaussian(seed, INITIAL_STEP, SHAPE))


@given(pictures=st.lists(st.tuples(plans(), st.booleans()), min_size=1, max_size=7), data=st.data())
@settings(max_examples=60)
def test_a_picture_in_any_company_is_the_picture_alone(
    pictures: list[tuple[SamplingPlan, bool]], data: st.DataObject
) -> None:
    """Bit for bit, with pictures that come, wait and go in any order."""
    made = [picture(plan, *([blend(plan.seed)] if blends else [])) for plan, blends in pictures]
    while waiting := [trajectory for trajectory in made if not trajectory.is_done]:
        batch = data.draw(st.permutations(waiting))[: data.draw(st.integers(1, len(waiting)))]
        advance(batch, Network())
    for (plan, blends), together in zip(pictures, made, strict=True):
        alone = finish(picture(plan, *([blend(plan.seed)] if blends else [])))
        assert together.latents.tobytes() == alone.tobytes()
        assert together.latents.dtype == np.float32
        assert np.isfinite(alone).all()


@given(plans(), st.permutations([Guidance(), classifier_free(3.5), PIX2PIX]), st.sampled_from([0.0, 0.7]))
@settings(max_examples=40)
def test_a_batch_of_one_two_and_three_rows_is_each_picture_alone(
    plan: SamplingPlan, kinds: list[Guidance], rescale: float
) -> None:
    """Bit for bit, at every evaluation, whichever picture comes first; six rows in one call of the network."""
    batch = [replace(plan, seed=seed, guidance=replace(kind, rescale=rescale)) for seed, kind in enumerate(kinds)]
    together, alone, network = list(map(picture, batch)), list(map(picture, batch)), Network()
    while not together[0].is_done:
        advance(together, network)
        for trajectory, other in zip(together, alone, strict=True):
            advance([other], Network())
            assert trajectory.latents.tobytes() == other.latents.tobytes()
            assert trajectory.denoised is not None and other.denoised is not None
            assert trajectory.denoised.tobytes() == other.denoised.tobytes()
    assert [len(rows) for rows, _, _ in network.calls] == [6] * len(plan.evaluations)


def test_one_call_holds_all_rows_guided_pictures_twice() -> None:
    network = Network()
    walk = make_grid(BETAS, 4)
    trajectories = [
        picture(sampling_plan(walk, prediction="v_prediction", guidance=4.0, seed=1)),
        picture(sampling_plan(make_grid(BETAS, 2), prediction="v_prediction", seed=2)),
        picture(sampling_plan(walk, prediction="v_prediction", guidance=2.0, seed=3, guidance_interval=(0.5, 1.0))),
    ]
    assert [trajectory.rows for trajectory in trajectories] == [2, 1, 1]
    before = [trajectory.latents for trajectory in trajectories]
    advance(trajectories, network)
    advance(trajectories, network)
    advance(trajectories[::2], network)
    assert [len(rows) for rows, _, _ in network.calls] == [4, 4, 4]

    rows, timesteps, conditioning = network.calls[0]
    np.testing.assert_array_equal(rows, np.stack([before[0], before[0], before[1], before[2]]))
    assert timesteps.tolist() == [999, 999, 999, 999]
    np.testing.assert_array_equal(
        conditioning["text"], np.stack([text(0)["text"], text(2)["text"], text(3)["text"], text(4)["text"]])
    )
    assert network.calls[1][1].tolist() == [749, 749, 499, 749]
    assert timesteps.dtype == rows.dtype == np.dtype(np.float32)
    assert [trajectory.rows for trajectory in trajectories] == [2, 0, 2]


def test_one_step_by_hand() -> None:
    """Half way to clean with v-prediction and guidance, against the formulas written out."""
    walk = make_grid(BETAS, 2).start_at_strength(0.5)
    plan = sampling_plan(walk, "ddim", "v_prediction", guidance=3.0)
    trajectory = picture(plan)
    z, alpha, sigma = trajectory.latents, walk.alphas[0], walk.sigmas[0]
    timesteps = np.array([499, 499], np.float32)
    uncond, cond = Network()(np.stack([z, z]), timesteps, {"text": np.stack([text(0)["text"], text(1)["text"]])})
    advance([trajectory], Network())
    np.testing.assert_allclose(
        trajectory.latents, alpha * z - sigma * (uncond + 3 * (cond - uncond)), rtol=1e-5, atol=1e-6
    )
    assert (trajectory.is_done, trajectory.progress, trajectory.evaluation_count) == (True, 1.0, 1)


def test_guidance_of_one_never_asks_for_the_unconditional_row() -> None:
    trajectory = Trajectory(
        sampling_plan(make_grid(BETAS, 3), prediction="sample"),
        gaussian(0, INITIAL_STEP, SHAPE),
        {CONDITIONAL: Branch(text(1))},
    )
    network = Network()
    while not trajectory.is_done:
        advance([trajectory], network)
    assert [len(rows) for rows, _, _ in network.calls] == [1, 1, 1]


def test_progress_counts_evaluations() -> None:
    trajectory = picture(sampling_plan(make_grid(BETAS, 3), "heun", "sample"))
    seen = []
    while not trajectory.is_done:
        seen.append(trajectory.progress)
        advance([trajectory], Network())
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_kept_latents_are_at_the_level_of_each_step_and_come_out_clean(sampler: str) -> None:
    source = blend(9)
    trajectory = picture(sampling_plan(make_grid(BETAS, 3), sampler, "v_prediction", seed=9), source)
    for evaluation in trajectory.plan.evaluations:
        advance([trajectory], Network())
        expected = add_noise(source.clean, source.noise, evaluation.end.alpha, evaluation.end.sigma)
        untouched = np.broadcast_to(source.mask == 0, SHAPE)
        np.testing.assert_array_equal(trajectory.latents[untouched], expected[untouched])
    np.testing.assert_array_equal(trajectory.latents[untouched], source.clean[untouched])
    assert evaluation.end == CLEAN


def test_extra_channels_are_seen_and_not_moved() -> None:
    extra = gaussian(3, 8, (5, *SHAPE[1:]))
    plan = sampling_plan(make_grid(BETAS, 2), prediction="sample", guidance=2.0)
    trajectory, network = picture(plan, channels=extra), Network()
    z = trajectory.latents
    advance([trajectory], network)
    np.testing.assert_array_equal(network.calls[0][0], np.stack([np.concatenate([z, extra])] * 2))
    assert trajectory.latents.shape == SHAPE


def test_a_network_may_reuse_its_buffers() -> None:
    buffer = np.empty((1, *SHAPE), np.float32)

    def reusing(rows: Array, timesteps: Array, conditioning: Mapping[str, NDArray[Any]]) -> Array:
        buffer[:] = Network()(rows, timesteps, conditioning)
        return buffer

    plan = sampling_plan(make_grid(BETAS, 5), "unipc", "sample", seed=4)
    trajectory = picture(plan)
    while not trajectory.is_done:
        advance([trajectory], reusing)
        buffer[:] = np.nan
    assert trajectory.latents.tobytes() == finish(picture(plan)).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_latents_stay_float32_whatever_the_network_answers(dtype: type[np.floating[Any]]) -> None:
    trajectory = picture(sampling_plan(make_grid(BETAS, 2), "unipc", "v_prediction", guidance=2.0))
    while not trajectory.is_done:
        advance([trajectory], lambda *asked: Network()(*asked).astype(dtype))
        assert trajectory.latents.dtype == np.float32


def test_nothing_moves_when_the_network_fails() -> None:
    def broken(rows: Array, timesteps: Array, conditioning: Mapping[str, NDArray[Any]]) -> Array:
        raise RuntimeError("out of memory")

    trajectory = picture(sampling_plan(make_grid(BETAS, 3), "dpmpp_2m", "sample"))
    advance([trajectory], Network())
    before = trajectory.latents.copy()
    with pytest.raises(RuntimeError, match="out of memory"):
        advance([trajectory], broken)
    assert (trajectory.index, trajectory.latents.tobytes()) == (1, before.tobytes())


def test_nothing_moves_where_there_is_no_room_for_what_is_added() -> None:
    """The noise of the second picture finds none; the first one would have had its own."""
    pictures = [picture(sampling_plan(make_grid(FLOW, 3), "euler_ancestral", "flow", seed=seed)) for seed in (1, 2)]
    before = [one.latents for one in pictures]
    with pytest.raises(MemoryError):
        advance(pictures, Network(), Full(1))
    assert all(one.latents is latents and one.index == 0 for one, latents in zip(pictures, before, strict=True))
    advance(pictures, Network(), Full(2))
    assert [one.index for one in pictures] == [1, 1]


def test_an_empty_batch_asks_nothing() -> None:
    network = Network()
    advance([], network)
    assert network.calls == []


def test_batches_without_meaning_are_refused() -> None:
    plan = sampling_plan(make_grid(BETAS, 1), prediction="sample")
    done = picture(plan)
    finish(done)
    with pytest.raises(InvalidRequest, match="a picture that is already done"):
        advance([picture(plan), done], Network())
    wide = Trajectory(plan, gaussian(0, INITIAL_STEP, (2, 4, 8)), branches(1))
    with pytest.raises(InvalidRequest, match="batch them by size"):
        advance([picture(plan), wide], Network())
    extra = picture(plan, channels=np.zeros((1, 4, 4), np.float32))
    with pytest.raises(InvalidRequest, match="only some pictures of the batch have extra input channels"):
        advance([picture(plan), extra], Network())
    longer = Trajectory(plan, gaussian(0, INITIAL_STEP, SHAPE), {CONDITIONAL: Branch({"text": np.zeros((4, 5))})})
    with pytest.raises(InvalidRequest, match=r"input text has the shapes \[3, 5\], \[4, 5\]; allowed: inputs of one"):
        advance([picture(plan), longer], Network())
    with pytest.raises(InvalidRequest, match="guidance needs a branch 'unconditional' that has the inputs text"):
        Trajectory(
            sampling_plan(make_grid(BETAS, 1), prediction="sample", guidance=3.0),
            gaussian(0, INITIAL_STEP, SHAPE),
            {CONDITIONAL: Branch(text(1))},
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler": "dim"}, "did you mean 'ddim'"),
        ({"prediction": "eps"}, "there is no prediction 'eps'; allowed: epsilon, sample, v_prediction, flow"),
        ({"guidance": -1.0}, "guidance is -1.0; allowed: a number from 0 to 1000"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; allowed: a number from 0 to 1"),
        (
            {"guidance_interval": (0.6, 0.2)},
            "the beginning of guidance_interval is 0.6; allowed: a number from 0 to 0.2",
        ),
        ({"guidance_interval": (0.0, 2.0)}, "the end of guidance_interval is 2.0"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"eta": 0.5, "sampler": "heun"}, "eta is 0.5 with sampler heun; allowed: eta 0, or sampler ddim"),
        ({"seed": -1}, "seed is -1"),
        ({"prediction": "epsilon"}, "an epsilon network at pure noise, where"),
    ],
)
def test_plans_without_meaning_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        sampling_plan(**{"grid": make_grid(BETAS, 4), "prediction": "v_prediction", **fields})
