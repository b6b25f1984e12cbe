"""Feature caching: when the whole network runs, when the shallow part does, and that a batch makes no difference."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion import (
    INITIAL_STEP,
    SAMPLERS,
    FeatureCache,
    Schedule,
    SplitDenoiser,
    Trajectory,
    advance,
    gaussian,
    make_grid,
)
from stillhouse.errors import InvalidRequest
from tests.diffusion.plans import branches, sampling_plan, text

SHAPE = (2, 4, 4)
BETAS = Schedule(zero_terminal_snr=True)

Inputs = Mapping[str, NDArray[Any]]


@dataclass
class Network:
    """A made-up network in two depths, whose rows depend on nothing but themselves; it notes the rows of each call."""

    calls: list[tuple[str, int]] = field(default_factory=list)

    def full(self, rows: Array, timesteps: Array, conditioning: Inputs) -> tuple[Array, Array]:
        self.calls.append(("full", len(rows)))
        deep = _each(_deep, rows, timesteps, conditioning["text"])
        return _each(_output, rows, timesteps, deep), deep

    def shallow(self, rows: Array, timesteps: Array, conditioning: Inputs, deep: Array) -> Array:
        self.calls.append(("shallow", len(rows)))
        return _each(_output, rows, timesteps, deep)

    @property
    def cut(self) -> SplitDenoiser:
        return SplitDenoiser(self.full, self.shallow)

    def whole(self, rows: Array, timesteps: Array, conditioning: Inputs) -> Array:
        return self.full(rows, timesteps, conditioning)[0]


def _each(make: Any, *columns: Any) -> Array:
    return np.stack([make(*values) for values in zip(*columns, strict=True)]).astype(np.float32)


def _deep(row: Array, timestep: np.float32, text: Array) -> Array:
    deep: Array = np.tanh(row[:, ::2]) * text.mean() + np.float32(timestep / 3000)
    return deep


def _output(row: Array, timestep: np.float32, deep: Array) -> Array:
    output: Array = row / (1 + np.abs(row)) + np.repeat(deep, 2, axis=1) + np.float32(timestep / 5000)
    return output


def picture(cache_interval: int = 1, steps: int = 6, sampler: str = "ddim", seed: int = 0, **fields: Any) -> Trajectory:
    plan = sampling_plan(
        make_grid(BETAS, steps), sampler, "v_prediction", cache_interval=cache_interval, seed=seed, **fields
    )
    return Trajectory(plan, gaussian(seed, INITIAL_STEP, SHAPE), branches(seed + 1))


def finish(trajectory: Trajectory, network: Network | None = None) -> Array:
    network = network or Network()
    while not trajectory.is_done:
        advance([trajectory], network.cut)
    return trajectory.latents


def cached(trajectory: Trajectory) -> Mapping[str, NDArray[Any]]:
    """What its cache holds, by branch; nothing where it has no cache."""
    return {name: array for effect in trajectory.effects for name, array in effect._features.items()}  # type: ignore[attr-defined]


@st.composite
def pictures(draw: st.DrawFn) -> dict[str, Any]:
    begin = draw(st.floats(0, 1))
    return {
        "cache_interval": draw(st.integers(1, 4)),
        "steps": draw(st.integers(1, 7)),
        "sampler": draw(st.sampled_from(sorted(SAMPLERS))),
        "guidance": draw(st.sampled_from([1.0, 4.0])),
        "guidance_rescale": draw(st.sampled_from([0.0, 0.7])),
        "guidance_interval": (begin, draw(st.floats(begin, 1))),
        "seed": draw(st.integers(0, 50)),
    }


@given(plans=st.lists(pictures(), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60)
def test_a_picture_in_any_company_is_the_picture_alone(plans: list[dict[str, Any]], data: st.DataObject) -> None:
    """Bit for bit, whatever the refreshes, with pictures that come, wait and go in any order: invariant 1."""
    made, network = [picture(**plan) for plan in plans], Network()
    while waiting := [trajectory for trajectory in made if not trajectory.is_done]:
        batch = data.draw(st.permutations(waiting))[: data.draw(st.integers(1, len(waiting)))]
        before = len(network.calls)
        rows = sum(trajectory.rows for trajectory in batch)
        advance(batch, network.cut)
        asked = network.calls[before:]
        assert len({depth for depth, _ in asked}) == len(asked) <= 2
        assert sum(count for _, count in asked) == rows
    for plan, together in zip(plans, made, strict=True):
        assert together.latents.tobytes() == finish(picture(**plan)).tobytes()
        assert together.latents.dtype == np.float32 and not cached(together)


@given(plan=pictures())
@settings(max_examples=30)
def test_refresh_of_one_is_the_network_in_one_piece(plan: dict[str, Any]) -> None:
    trajectory = picture(**plan | {"cache_interval": 1})
    while not trajectory.is_done:
        advance([trajectory], Network().whole)
    network = Network()
    assert finish(picture(**plan | {"cache_interval": 1}), network).tobytes() == trajectory.latents.tobytes()
    assert {depth for depth, _ in network.calls} == {"full"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cache_interval": 1}, "FFFFFF"),
        ({"cache_interval": 2}, "FsFsFs"),
        ({"cache_interval": 3}, "FssFss"),
        ({"cache_interval": 1000}, "Fsssss"),
        ({"cache_interval": 2, "sampler": "heun", "steps": 3}, "FsFsF"),
        ({"cache_interval": 3, "sampler": "heun", "steps": 3}, "FssFs"),
    ],
)
def test_when_the_whole_network_is_asked(fields: dict[str, Any], expected: str) -> None:
    """The first evaluation is always full; Heun's second look counts as one."""
    network = Network()
    finish(picture(**fields), network)
    assert "".join({"full": "F", "shallow": "s"}[depth] for depth, _ in network.calls) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.0, 1.0), "F2 s2 s2 s2 F2 s2 s2 s2"),
        ((0.0, 0.5), "F2 s2 s2 s2 F1 s1 s1 s1"),
        ((0.0, 0.25), "F2 s2 s1 s1 F1 s1 s1 s1"),
        ((0.25, 1.0), "F1 s1 F2 s2 s2 s2 F2 s2"),
        ((0.25, 0.5), "F1 s1 F2 s2 s1 s1 F1 s1"),
    ],
)
def test_where_guidance_sets_in_both_rows_are_computed_anew(interval: tuple[float, float], expected: str) -> None:
    """The unconditional row has nothing kept; where guidance ends, the conditional row goes on with its own."""
    network = Network()
    finish(picture(4, 8, guidance=3.0, guidance_interval=interval), network)
    assert " ".join(f"{'F' if depth == 'full' else 's'}{rows}" for depth, rows in network.calls) == expected


def test_each_row_goes_on_with_its_own_features() -> None:
    """With an output that is the features alone, a guided shallow step by hand: v = 3 c - 2 u as at the first step."""
    network = Network()

    def full(rows: Array, timesteps: Array, conditioning: Inputs) -> tuple[Array, Array]:
        deep = _each(lambda row, text: np.full(SHAPE, text.mean()), rows, conditioning["text"])
        return deep, deep

    cut = SplitDenoiser(full, lambda rows, timesteps, conditioning, deep: deep)
    trajectory = picture(2, 4, guidance=3.0, seed=5)
    for _ in range(2):
        z, level, end = trajectory.latents, *trajectory.plan.grid.levels[trajectory.index : trajectory.index + 2]
        advance([trajectory], cut)
        v = 3 * text(6)["text"].mean() - 2 * text(0)["text"].mean()
        x0, noise = level.alpha * z - level.sigma * v, level.sigma * z + level.alpha * v
        np.testing.assert_allclose(trajectory.latents, end.alpha * x0 + end.sigma * noise, rtol=1e-5, atol=1e-5)
    assert network.calls == []


@given(
    interval=st.integers(2, 5),
    start=arrays(np.float32, 4, elements=st.floats(-8, 8, width=16)),
    slope=arrays(np.float32, 4, elements=st.floats(-8, 8, width=16)),
)
def test_features_that_change_evenly_are_estimated_exactly(interval: int, start: Any, slope: Any) -> None:
    """Apart from rounding; before two evaluations are known, the first one is repeated."""
    cache = FeatureCache(interval)
    for index in range(3 * interval):
        true = start + slope * np.float32(index)
        estimated = cache.estimate_features(["conditional"], index)
        if index % interval == 0:
            assert estimated is None
            cache.cache_features({"conditional": true}, index)
        else:
            assert estimated is not None
            np.testing.assert_allclose(estimated[0], start if index < interval else true, rtol=1e-5, atol=1e-5)


def test_features_are_continued_by_no_more_than_the_distance_of_the_known_ones() -> None:
    """Guidance that sets in at evaluation 1 makes the network run again after one evaluation."""
    cache = FeatureCache(8)
    cache.cache_features({"conditional": np.zeros(2, np.float32)}, 0)
    cache.cache_features({"conditional": np.ones(2, np.float32), "unconditional": np.ones(2, np.float32)}, 1)
    estimates = [cache.estimate_features(["unconditional", "conditional"], index) for index in (2, 3, 8)]
    assert [[float(row[0]) for row in rows or ()] for rows in estimates] == [[1.0, 2.0]] * 3


def test_one_batch_asks_each_depth_once() -> None:
    network = Network()
    batch = [picture(2, guidance=3.0), picture(1, seed=1), picture(3, seed=2)]
    for _ in range(3):
        advance(batch, network.cut)
    assert network.calls == [("full", 4), ("full", 1), ("shallow", 3), ("full", 3), ("shallow", 1)]


def test_features_are_cached_by_the_picture_alone_and_only_while_it_may_use_them() -> None:
    plain, caching = picture(1), picture(3)
    assert not cached(plain) and not cached(caching)
    advance([plain, caching], Network().cut)
    assert not plain.effects
    assert {name: array.shape for name, array in cached(caching).items()} == {"conditional": (2, 2, 4)}
    finish(caching)
    assert not cached(caching)


def test_a_network_may_reuse_its_buffers() -> None:
    network = Network()
    output, deep, shallow = (np.empty((9, *shape), np.float32) for shape in (SHAPE, (2, 2, 4), SHAPE))

    def full(rows: Array, timesteps: Array, conditioning: Inputs) -> tuple[Array, Array]:
        output[: len(rows)], deep[: len(rows)] = network.full(rows, timesteps, conditioning)
        return output[: len(rows)], deep[: len(rows)]

    def rest(rows: Array, timesteps: Array, conditioning: Inputs, kept: Array) -> Array:
        shallow[: len(rows)] = network.shallow(rows, timesteps, conditioning, kept)
        return shallow[: len(rows)]

    plans: list[dict[str, Any]] = [
        {"cache_interval": 2, "guidance": 3.0},
        {"cache_interval": 3, "seed": 1},
        {"seed": 2},
    ]
    made = [picture(**plan) for plan in plans]
    while not made[0].is_done:
        advance(made, SplitDenoiser(full, rest))
        for buffer in (output, deep, shallow):
            buffer[:] = np.nan
    for plan, trajectory in zip(plans, made, strict=True):
        assert trajectory.latents.tobytes() == finish(picture(**plan)).tobytes()


@pytest.mark.parametrize("broken", ["full", "shallow"])
def test_nothing_moves_when_either_depth_fails(broken: str) -> None:
    def fail(*asked: Any) -> Any:
        raise RuntimeError("out of memory")

    network = Network()
    made = [picture(2), picture(3, seed=1), picture(1, seed=2)]
    advance(made, network.cut)
    advance(made[1:], network.cut)
    before = [(one.index, one.latents.tobytes(), one.sampler_state, cached(one)) for one in made]
    with pytest.raises(RuntimeError, match="out of memory"):
        advance(made, replace(network.cut, **{broken: fail}))
    for one, (index, latents, past, features) in zip(made, before, strict=True):
        assert (one.index, one.latents.tobytes()) == (index, latents)
        assert one.sampler_state is past and list(map(id, cached(one).values())) == list(map(id, features.values()))


def test_kept_features_need_a_network_in_two_depths() -> None:
    with pytest.raises(
        InvalidRequest,
        match="cache_interval above 1, but the network is not split in two depths; "
        "allowed: cache_interval 1, or a SplitDenoiser",
    ):
        advance([picture(1), picture(2)], Network().whole)


@pytest.mark.parametrize("cache_interval", [0, -1, 1001, 2.5, True])
def test_a_refresh_without_meaning_is_refused(cache_interval: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=f"cache_interval is {cache_interval}; allowed: a whole number from 1 to 1000"
    ):
        picture(cache_interval)


def test_an_interval_that_is_no_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"guidance_interval is \(0.0,\); allowed: two numbers from 0 to 1"):
        picture(guidance_interval=(0.0,))
