"""The order of a table, and what it marks."""

from dataclasses import replace

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.rows import components, marked, rows
from tests.accelerate.views.sweeps import report, timing, trial


def test_networks_keep_their_order_and_the_pipeline_comes_last() -> None:
    sweep = report()
    assert components(sweep) == ("unet", "vae_decoder", "pipeline")
    assert components(replace(sweep, trials=sweep.trials[::-1])) == ("vae_decoder", "unet", "pipeline")


def test_rows_are_sorted_fastest_first_and_the_untimed_come_last_in_the_order_of_the_plan() -> None:
    found = rows(report(), "unet")
    speeds = [row.speed for row in found if row.speed]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 11
    untimed = [row.trial for row in found if not row.speed]
    assert untimed == [one for one in report().of("unet") if one.seconds is None]
    assert len(found) == len(report().of("unet"))


def test_the_baseline_and_the_choice_are_marked_once() -> None:
    sweep = report()
    for component in components(sweep):
        found = rows(sweep, component)
        assert [row.trial.candidate.key for row in found if row.baseline] == [sweep.baselines[component]]
        assert [row.trial.candidate.key for row in found if row.chosen] == [sweep.chosen[component]]
        base, chosen = marked(sweep, component)
        assert base and base.baseline and base.speed == 1 and chosen and chosen.chosen


def test_a_report_without_marks_or_with_foreign_keys_has_none() -> None:
    sweep = replace(report(), baselines={}, chosen={"unet": "no-such-key"})
    assert marked(sweep, "unet") == (None, None)
    assert marked(sweep, "nothing") == (None, None)


def test_the_paired_ratio_counts_more_than_the_medians() -> None:
    base = trial(Candidate("unet", "onnxruntime"), milliseconds=100)
    paired = trial(Candidate("unet", "openvino"), milliseconds=50, base=400)
    alone = Trial(Candidate("unet", "torch"), "accepted", seconds=timing(25))
    sweep = replace(report(), trials=(base, paired, alone), baselines={"unet": base.candidate.key})
    assert [row.speed for row in rows(sweep, "unet")] == [8, 4, 1]
    unmarked = {row.trial.candidate.backend: row.speed for row in rows(replace(sweep, baselines={}), "unet")}
    assert unmarked["openvino"] == 8 and unmarked["torch"] is None
