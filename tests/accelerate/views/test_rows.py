"""The order of table rows, and their marks."""

from dataclasses import replace

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.rows import baseline_and_chosen, report_components, report_rows
from tests.accelerate.views.sweeps import example_timing, example_trial, pipeline_report


def test_networks_keep_their_order_and_the_pipeline_comes_last() -> None:
    sweep = pipeline_report()
    assert report_components(sweep) == ("denoiser", "decoder", "pipeline")
    assert report_components(replace(sweep, trials=sweep.trials[::-1])) == ("decoder", "denoiser", "pipeline")


def test_rows_are_sorted_fastest_first_and_the_untimed_come_last_in_the_order_of_the_plan() -> None:
    rows = report_rows(pipeline_report(), "denoiser")
    speeds = [row.speed for row in rows if row.speed]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 11
    untimed = [row.trial for row in rows if not row.speed]
    assert untimed == [trial for trial in pipeline_report().trials_of("denoiser") if trial.seconds is None]
    assert len(rows) == len(pipeline_report().trials_of("denoiser"))


def test_the_baseline_and_the_choice_are_marked_once() -> None:
    sweep = pipeline_report()
    for component in report_components(sweep):
        rows = report_rows(sweep, component)
        assert [row.trial.candidate.key for row in rows if row.baseline] == [sweep.baselines[component]]
        assert [row.trial.candidate.key for row in rows if row.chosen] == [sweep.chosen[component]]
        base, chosen = baseline_and_chosen(sweep, component)
        assert base and base.baseline and base.speed == 1 and chosen and chosen.chosen


def test_a_report_without_marks_or_with_foreign_keys_has_none() -> None:
    sweep = replace(pipeline_report(), baselines={}, chosen={"denoiser": "no-such-key"})
    assert baseline_and_chosen(sweep, "denoiser") == (None, None)
    assert baseline_and_chosen(sweep, "nothing") == (None, None)


def test_the_paired_ratio_counts_more_than_the_medians() -> None:
    base = example_trial(Candidate("denoiser", "onnxruntime"), milliseconds=100)
    paired = example_trial(Candidate("denoiser", "openvino"), milliseconds=50, base=400)
    alone = Trial(Candidate("denoiser", "torch"), "accepted", seconds=example_timing(25))
    sweep = replace(pipeline_report(), trials=(base, paired, alone), baselines={"denoiser": base.candidate.key})
    assert [row.speed for row in report_rows(sweep, "denoiser")] == [8, 4, 1]
    unmarked = {row.trial.candidate.backend: row.speed for row in report_rows(replace(sweep, baselines={}), "denoiser")}
    assert unmarked["openvino"] == 8 and unmarked["torch"] is None
