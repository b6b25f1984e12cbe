"""The order of a table, and what it marks."""

from dataclasses import replace

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.rows import baseline_and_chosen, report_components, report_rows
from tests.accelerate.views.sweeps import example_timing, example_trial, pipeline_report


def test_networks_keep_their_order_and_the_pipeline_comes_last() -> None:
    sweep = pipeline_report()
    assert report_components(sweep) == ("unet", "vae_decoder", "pipeline")
    assert report_components(replace(sweep, trials=sweep.trials[::-1])) == ("vae_decoder", "unet", "pipeline")


def test_rows_are_sorted_fastest_first_and_the_untimed_come_last_in_the_order_of_the_plan() -> None:
    found = report_rows(pipeline_report(), "unet")
    speeds = [row.speed for row in found if row.speed]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 11
    untimed = [row.trial for row in found if not row.speed]
    assert untimed == [one for one in pipeline_report().trials_of("unet") if one.seconds is None]
    assert len(found) == len(pipeline_report().trials_of("unet"))


def test_the_baseline_and_the_choice_are_marked_once() -> None:
    sweep = pipeline_report()
    for component in report_components(sweep):
        found = report_rows(sweep, component)
        assert [row.trial.candidate.key for row in found if row.baseline] == [sweep.baselines[component]]
        assert [row.trial.candidate.key for row in found if row.chosen] == [sweep.chosen[component]]
        base, chosen = baseline_and_chosen(sweep, component)
        assert base and base.baseline and base.speed == 1 and chosen and chosen.chosen


def test_a_report_without_marks_or_with_foreign_keys_has_none() -> None:
    sweep = replace(pipeline_report(), baselines={}, chosen={"unet": "no-such-key"})
    assert baseline_and_chosen(sweep, "unet") == (None, None)
    assert baseline_and_chosen(sweep, "nothing") == (None, None)


def test_the_paired_ratio_counts_more_than_the_medians() -> None:
    base = example_trial(Candidate("unet", "onnxruntime"), milliseconds=100)
    paired = example_trial(Candidate("unet", "openvino"), milliseconds=50, base=400)
    alone = Trial(Candidate("unet", "torch"), "accepted", seconds=example_timing(25))
    sweep = replace(pipeline_report(), trials=(base, paired, alone), baselines={"unet": base.candidate.key})
    assert [row.speed for row in report_rows(sweep, "unet")] == [8, 4, 1]
    unmarked = {row.trial.candidate.backend: row.speed for row in report_rows(replace(sweep, baselines={}), "unet")}
    assert unmarked["openvino"] == 8 and unmarked["torch"] is None
