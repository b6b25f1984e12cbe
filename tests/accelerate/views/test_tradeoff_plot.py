"""Coordinates of the trade-off plot and of whiskers."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, Report
from stillhouse.accelerate.records.trial import Status
from stillhouse.accelerate.views.axes import BOTTOM, LEFT, RIGHT, TOP, quality_axis
from stillhouse.accelerate.views.rows import ReportRow, report_rows
from stillhouse.accelerate.views.tradeoff_plot import TradeoffMark, TradeoffPlot, build_tradeoff_plot
from stillhouse.accelerate.views.whisker import WIDTH, build_whiskers
from stillhouse.measure import image_metrics
from tests.accelerate.views.sweeps import example_trial, network_report, pipeline_report

STATUSES: list[Status] = ["accepted", "rejected"]
POINTS = st.lists(
    st.tuples(st.floats(0.05, 40), st.floats(-20, 150), st.sampled_from(STATUSES)), min_size=1, max_size=12
)


def sweep(points: list[tuple[float, float, Status]]) -> Report:
    """Return a report of a baseline and candidates with these speed-ups and SQNRs."""
    base = Candidate("denoiser", "onnxruntime")
    others = [
        example_trial(
            Candidate("denoiser", ("openvino", "torch")[number % 2], options={"number": str(number)}),
            status,
            "",
            96 / speed,
            96,
            sqnr,
        )
        for number, (speed, sqnr, status) in enumerate(points)
    ]
    trials = (example_trial(base, milliseconds=96, sqnr=999), *others)
    return replace(
        pipeline_report(),
        trials=trials,
        baselines={"denoiser": base.key},
        chosen={"denoiser": trials[-1].candidate.key},
    )


def plot_of(sweep: Report, component: str = "denoiser", bounds: Bounds | None = None) -> TradeoffPlot:
    plot = build_tradeoff_plot(report_rows(sweep, component), sweep.bounds if bounds is None else bounds)
    assert plot is not None
    return plot


def overlap(first: TradeoffMark, second: TradeoffMark) -> bool:
    assert first.label and second.label
    a, b, c, d = first.label.box
    e, f, g, h = second.label.box
    return a < g and e < c and b < h and f < d


def test_networks_are_drawn_by_outputs_and_pipelines_by_pictures() -> None:
    assert plot_of(pipeline_report(), "denoiser").quality_name == "SQNR"
    assert plot_of(pipeline_report(), "pipeline").quality_name == "PSNR"
    assert plot_of(network_report(), "network").quality_name == "SQNR"


def test_the_bound_is_drawn_where_one_was_asked() -> None:
    plot = plot_of(pipeline_report(), "pipeline")
    assert plot.bound_tick is not None and plot.bound_tick[1] == "bound: 20 dB"
    assert plot_of(pipeline_report(), "pipeline", Bounds(min_sqnr=3.0)).bound_tick is None
    below = [mark for mark in plot.marks if mark.y > plot.bound_tick[0]]
    assert [mark.row.trial.status for mark in below] == ["rejected"]


def test_nothing_is_drawn_of_fewer_than_two() -> None:
    assert build_tradeoff_plot((), Bounds()) is None
    assert build_tradeoff_plot(report_rows(pipeline_report(), "denoiser")[-3:], Bounds()) is None


def test_trials_without_figures_are_counted() -> None:
    plot = plot_of(pipeline_report(), "denoiser")
    assert plot.missing == 5 and len(plot.marks) == 11


def test_twice_as_fast_is_as_far_right_as_half_as_fast_is_left() -> None:
    half, equal, double = sorted(mark.x for mark in plot_of(sweep([(0.5, 30, "accepted"), (2, 30, "accepted")])).marks)
    assert equal - half == pytest.approx(double - equal)


def test_equal_results_stand_above_all_others() -> None:
    plot = plot_of(pipeline_report(), "denoiser")
    top = min(plot.marks, key=lambda mark: mark.y)
    assert top.row.baseline and plot.quality_ticks[-1] == (top.y, "equal")


def test_no_level_is_written_over_the_line_of_equal_results() -> None:
    _, ticks = quality_axis([38.0, 94.0, image_metrics.MAX_PSNR], image_metrics.MAX_PSNR)
    assert [label for _, label in ticks] == [*map(str, range(30, 100, 10)), "equal"]
    positions = [position for position, _ in ticks]
    assert min(abs(first - second) for first, second in pairwise(positions)) > 20


def test_what_a_pointer_is_told_holds_every_figure_and_the_reason() -> None:
    tooltip = next(
        mark.tooltip for mark in plot_of(pipeline_report(), "pipeline").marks if mark.row.trial.status == "rejected"
    )
    assert tooltip == (
        "stillhouse sampling, networks chosen, sampler dpm++, steps 12: 8.91x, PSNR 17.9 dB, rejected: "
        "the score falls by 6.2 points, more than 1"
    )


def test_the_choice_is_drawn_last_and_named() -> None:
    for component in ("denoiser", "decoder", "pipeline"):
        mark = plot_of(pipeline_report(), component).marks[-1]
        assert mark.row.chosen and mark.label is not None and mark.row.name.startswith(mark.label.text.rstrip("…"))


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_everything_stands_within_the_frame_in_the_order_of_its_figures(
    points: list[tuple[float, float, Status]],
) -> None:
    plot = plot_of(sweep(points))
    assert len(plot.marks) == len(points) + 1
    for mark in plot.marks:
        assert LEFT <= mark.low <= mark.x <= mark.high <= RIGHT
        assert TOP <= mark.y <= BOTTOM
    by_speed = sorted(plot.marks, key=lambda mark: mark.row.speed or 0)
    assert [mark.x for mark in by_speed] == sorted(mark.x for mark in by_speed)
    by_quality = sorted(plot.marks, key=lambda mark: -(mark.row.sqnr or 0))
    assert [mark.y for mark in by_quality] == pytest.approx(sorted(mark.y for mark in by_quality))
    assert all(LEFT <= x <= RIGHT for x, _ in plot.speed_ticks) and "1x" in [label for _, label in plot.speed_ticks]
    assert all(TOP - 1 <= y <= BOTTOM + 1 for y, _ in plot.quality_ticks)
    assert 2 <= len(plot.quality_ticks) <= 10


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_nothing_accepted_beats(points: list[tuple[float, float, Status]]) -> None:
    plot = plot_of(sweep(points))
    accepted = [mark.row for mark in plot.marks if mark.row.accepted]

    def figures(row: ReportRow) -> tuple[float, float]:
        return row.speed or 0, row.sqnr or 0

    for mark in plot.marks:
        speed, quality = figures(mark.row)
        beaten = any(
            other[0] >= speed and other[1] >= quality and other != (speed, quality) for other in map(figures, accepted)
        )
        if mark.row.accepted and [figures(row) for row in accepted].count((speed, quality)) == 1:
            assert mark.on_front != beaten
        elif not mark.row.accepted:
            assert not mark.on_front
    corners = [tuple(map(float, corner.split(","))) for corner in plot.front_line.split()]
    assert corners == sorted(corners) and corners[0][0] == LEFT and corners[-1][1] == BOTTOM


@given(POINTS)
@settings(max_examples=40, deadline=None)
def test_no_two_labels_overlap_and_none_leaves_the_frame(points: list[tuple[float, float, Status]]) -> None:
    named = [mark for mark in plot_of(sweep(points)).marks if mark.label]
    for number, mark in enumerate(named):
        assert mark.label and mark.label.box[0] >= LEFT and mark.label.box[2] <= RIGHT and mark.label.box[3] <= BOTTOM
        assert not any(overlap(mark, other) for other in named[:number])


def test_long_names_are_cut() -> None:
    first, *others = sweep([(3, 40, "accepted")]).trials
    long = replace(others[0], candidate=replace(others[0].candidate, options={"number": "9" * 200}))
    label = plot_of(replace(sweep([]), trials=(first, long), chosen={"denoiser": long.candidate.key})).marks[-1].label
    assert label is not None and label.text.endswith("…") and len(label.text) < 60


def test_whiskers_share_an_axis_on_which_the_baseline_is_one() -> None:
    column = build_whiskers(report_rows(pipeline_report(), "denoiser"))
    timed = [whisker for whisker in column.whiskers if whisker]
    assert len(column.whiskers) == 16 and len(timed) == 11
    assert all(0 <= whisker.low <= whisker.value <= whisker.high <= WIDTH for whisker in timed)
    assert [whisker.value for whisker in timed] == sorted((whisker.value for whisker in timed), reverse=True)
    assert timed[0].label == "7.50x" and re.fullmatch(r"6\.9\d to 7\.9\d", timed[0].interval_label)
    assert [label for _, label in column.ticks] == ["1x", "2x", "4x", "7x"]
    assert column.ticks[0][0] == column.baseline
    alone = build_whiskers(report_rows(sweep([(1, 20, "accepted")]), "denoiser"))
    assert all(whisker.value == alone.baseline for whisker in alone.whiskers if whisker)


@given(POINTS)
@settings(max_examples=40, deadline=None)
def test_ticks_of_whiskers_stand_apart_in_the_order_of_their_values(points: list[tuple[float, float, Status]]) -> None:
    ticks = build_whiskers(report_rows(sweep(points), "denoiser")).ticks
    places = [x for x, _ in ticks]
    assert all(0 <= x <= WIDTH for x in places) and all(b - a >= 40 for a, b in pairwise(places))
    values = [float(label.removesuffix("x")) for _, label in ticks]
    assert values == sorted(values) and 1 in values


def test_a_row_that_was_not_paired_has_no_whisker_ends() -> None:
    base, other = sweep([(2, 30, "accepted")]).trials
    alone = replace(other, ratio=None)
    whisker = build_whiskers(report_rows(replace(sweep([]), trials=(base, alone)), "denoiser")).whiskers[0]
    assert whisker is not None and whisker.low == whisker.value == whisker.high and whisker.interval_label == ""
