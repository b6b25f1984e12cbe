"""Latency model: seconds by rows, saturation, remaining seconds, slowdowns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.cost import MAX_CURVES, MIN_THROUGHPUT_SHARE, CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.simulate import NO_REQUEST

SECONDS = st.dictionaries(st.integers(1, 32), st.floats(1e-4, 100.0), min_size=1, max_size=6)
ROWS = st.lists(st.sampled_from((1, 2, 3)), min_size=1, max_size=50)
GROUP = BatchKey("model", 64, 64)


@given(SECONDS)
def test_measured_points_are_exact(seconds: dict[int, float]) -> None:
    curve = LatencyCurve(seconds)
    assert {rows: curve.step_seconds(rows) for rows in seconds} == seconds


@given(SECONDS, st.integers(1, 100))
def test_interpolation_is_linear_and_monotonic(seconds: dict[int, float], rows: int) -> None:
    fewer = [count for count in seconds if count <= rows] or [min(seconds)]
    more = [count for count in seconds if count >= rows]
    seconds_ = LatencyCurve(seconds).step_seconds(rows)
    assert seconds_ >= min(seconds[max(fewer)], *(seconds[min(more)],) if more else (seconds_,)) * (1 - 1e-9)
    if more:
        assert seconds_ <= max(seconds[max(fewer)], seconds[min(more)]) * (1 + 1e-9)


@given(SECONDS)
def test_saturation_is_the_smallest_nearly_best_batch(seconds: dict[int, float]) -> None:
    cap = LatencyCurve(seconds).saturation_rows
    best = max(rows / duration for rows, duration in seconds.items())
    assert cap / seconds[cap] >= MIN_THROUGHPUT_SHARE * best
    assert all(rows / seconds[rows] < MIN_THROUGHPUT_SHARE * best for rows in seconds if rows < cap)


@given(st.integers(1, 40))
def test_bucketed_batches_cost_their_padded_size(rows: int) -> None:
    curve = LatencyCurve({1: 1.0, 2: 1.25, 4: 2.0, 8: 3.0}, is_bucketed=True)
    whole, rest = divmod(rows, 8)
    last = 0.0 if not rest else next(curve.seconds[size] for size in (1, 2, 4, 8) if size >= rest)
    assert curve.step_seconds(rows) == 3 * whole + last
    assert curve.scale(2.0).step_seconds(rows) == 2 * curve.step_seconds(rows)


def test_device_without_batching_gain_saturates_at_one_row() -> None:
    assert LatencyCurve({1: 1.0, 2: 2.0, 4: 4.1}).saturation_rows == 1


@pytest.mark.parametrize("seconds", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}])
def test_empty_or_invalid_curve_is_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(InvalidRequest, match="seconds above 0"):
        LatencyCurve(seconds)


@given(ROWS, st.data())
def test_remaining_seconds_cover_the_remaining_evaluations(rows: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(rows)))
    remaining = StepPlan(tuple(rows)).remaining(index)
    assert remaining == {count: rows[index:].count(count) for count in set(rows[index:])}


@given(ROWS, st.integers(0, 2), st.data())
def test_remaining_seconds_of_a_job(rows: list[int], pictures: int, data: st.DataObject) -> None:
    curve = LatencyCurve({1: 2.0, 2: 3.0}, encode_text=0.5, decode=0.25, encode_image=0.125)
    cost, step_plan = CostModel({GROUP: curve}), StepPlan(tuple(rows), pictures)
    index = data.draw(st.integers(0, len(rows)))
    job = Job(
        "id",
        Tier("free"),
        "key",
        GROUP,
        step_plan,
        NO_REQUEST,
        isolated_seconds=cost.isolated_seconds(GROUP, step_plan),
        index=index,
    )
    done = sum({1: 2.0, 2: 3.0, 3: 4.0}[count] for count in rows[:index])
    begun = 0.5 + 0.125 * pictures if index else 0.0
    assert job.isolated_seconds == pytest.approx(
        sum({1: 2.0, 2: 3.0, 3: 4.0}[count] for count in rows) + 0.75 + 0.125 * pictures
    )
    assert cost.remaining_seconds(job) == pytest.approx(job.isolated_seconds - done - begun)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0.2, 5.0)), max_size=50))
def test_slowdown_stays_within_observations(updated: list[tuple[int, float]]) -> None:
    cost = CostModel({GROUP: LatencyCurve({1: 1.0, 2: 1.5})})
    for rows, pace in updated:
        cost = cost.with_measurement(GROUP, rows, pace * cost.curves[GROUP].step_seconds(rows))
    paces = [1.0, *(pace for _, pace in updated)]
    assert min(paces) * (1 - 1e-9) <= cost.step_seconds(GROUP, 1) <= max(paces) * (1 + 1e-9)
    assert cost.saturation_rows(GROUP) == CostModel(cost.curves).saturation_rows(GROUP)


def test_slowdown_follows_drift_and_clips_outliers() -> None:
    cost = CostModel({GROUP: LatencyCurve({1: 1.0})})
    assert cost.with_measurement(GROUP, 1, 1000.0).step_seconds(GROUP, 1) == pytest.approx(1.15)
    for _ in range(100):
        cost = cost.with_measurement(GROUP, 1, 2.0)
    assert cost.step_seconds(GROUP, 1) == pytest.approx(2.0, rel=0.01)
    assert cost.isolated_seconds(GROUP, StepPlan((1, 1))) == pytest.approx(4.0, rel=0.01)


def test_unmeasured_size_scales_the_nearest_by_pixels() -> None:
    large = BatchKey("model", 128, 128)
    cost = CostModel(
        {GROUP: LatencyCurve({1: 1.0, 2: 2.0}, 0.5, 0.25, 0.125), large: LatencyCurve({1: 8.0})}, {GROUP: 2.0}
    )
    wide = BatchKey("model", 128, 64)
    key = cost.with_batch_key(wide)
    assert key.curves[wide] == LatencyCurve({1: 2.0, 2: 4.0}, 0.5, 0.5, 0.25) and key.step_seconds(wide, 1) == 4.0
    assert cost.with_batch_key(BatchKey("model", 256, 128)).step_seconds(BatchKey("model", 256, 128), 1) == 16.0
    assert cost.with_batch_key(GROUP) is cost
    with pytest.raises(InvalidRequest, match="other"):
        cost.with_batch_key(BatchKey("other", 64, 64))


def test_unmeasured_sizes_are_bounded_and_cost_the_same_when_dropped() -> None:
    measured = BatchKey("model", 64, 64)
    cost = CostModel({measured: LatencyCurve({1: 1.0})})
    groups = [BatchKey("model", 64 + 8 * number, 64) for number in range(1, 1000)]
    for batch_key in groups:
        cost = cost.with_batch_key(batch_key).with_slowdown(batch_key, 2.0)
    assert len(cost.curves) <= MAX_CURVES and len(cost.slowdowns) <= MAX_CURVES and measured in cost.curves
    assert groups[0] not in cost.curves
    assert cost.step_seconds(groups[0], 1) == pytest.approx(
        cost.curves[measured].step_seconds(1) * groups[0].pixels / measured.pixels
    )
