"""Sentences about the choice, for every goal and every end of a sweep."""

from dataclasses import replace
from typing import Any

import pytest

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import GOALS, Bounds, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.summary import (
    headline,
    price_per_thousand,
    summarise_report,
    summary_component,
    summary_sentences,
)
from stillhouse.measure.clock import Ratio
from tests.accelerate.views.sweeps import MIB, example_timing, network_report, pipeline_report


def changed(sweep: Report, component: str, **changes: Any) -> Report:
    """Return the report with changes to the chosen trial of a component."""

    def change(trial: Trial) -> Trial:
        is_chosen = trial.candidate.component == component and trial.candidate.key == sweep.chosen[component]
        return replace(trial, **changes) if is_chosen else trial

    return replace(sweep, trials=tuple(map(change, sweep.trials)))


def test_a_pipeline_is_told_by_its_pictures() -> None:
    assert summary_component(pipeline_report()) == "pipeline"
    expected = "A picture takes 512 ms instead of 3.60 s: 7.03 times as fast (95 % interval 6.54 to 7.45)."
    assert headline(pipeline_report()) == expected


def test_a_network_is_told_by_its_calls() -> None:
    assert summary_component(network_report()) == "network"
    expected = "One call takes 19.8 ms instead of 96.0 ms: 4.85 times as fast (95 % interval 4.51 to 5.14)."
    assert headline(network_report()) == expected


def test_each_goal_is_told_by_what_it_wants() -> None:
    memory = replace(pipeline_report(), goal="memory")
    assert headline(memory).startswith(
        "A picture takes 590 MiB of memory instead of 720 MiB, and is 7.03 times as fast"
    )
    # 3.6 s x 0.7 per picture compared with 0.512 s x 0.7, both at batch size 8
    cost = replace(pipeline_report(), goal="cost", price=0.36, currency="EUR")
    assert headline(cost) == (
        "A thousand pictures cost 0.0358 EUR at batch size 8 instead of 0.25: "
        "7.03 times as many for the same price (95 % interval 6.54 to 7.45)."
    )
    throughput = replace(pipeline_report(), goal="throughput")
    for unpriced in (throughput, replace(cost, price=None)):
        assert headline(unpriced) == (
            "Throughput is 2.79 pictures a second at batch size 8 instead of 0.40: "
            "7.03 times as many (95 % interval 6.54 to 7.45)."
        )


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("throughput", "A picture takes 512 ms instead of 3.60 s: 7.03 times as fast (95 % interval 6.54 to 7.45)."),
        (
            "cost",
            "A thousand pictures cost 0.0512 USD instead of 0.36: 7.03 times as fast (95 % interval 6.54 to 7.45).",
        ),
    ],
)
def test_what_was_not_timed_in_batches_is_told_by_one_call(goal: Any, expected: str) -> None:
    sweep = replace(pipeline_report(), goal=goal, price=0.36)
    assert headline(replace(sweep, trials=tuple(replace(trial, batch={}) for trial in sweep.trials))) == expected


def test_medians_that_disagree_with_the_pairs_are_named_after_them() -> None:
    """The machine was twice as fast for the candidate's later rounds: 34.6 ms by 16.2 ms is 2.14, not 3.11."""
    paired = replace(example_timing(34.6), runs=18)
    sweep = changed(
        network_report(), "network", seconds=example_timing(16.2), ratio=Ratio(3.11, 2.9, 3.3), baseline_seconds=paired
    )
    assert headline(sweep) == (
        "One call is 3.11 times as fast (95 % interval 2.90 to 3.30), by pairs of runs. "
        "The medians, 16.2 ms and 34.6 ms of the baseline, have the ratio 2.14: the machine's speed drifted."
    )


def test_the_baselines_time_is_that_of_the_same_rounds() -> None:
    sweep = changed(network_report(), "network", baseline_seconds=example_timing(90))
    assert headline(sweep).startswith("One call takes 19.8 ms instead of 90.0 ms: 4.85 times as fast")


def test_less_memory_at_less_speed_is_told_as_both() -> None:
    sweep = changed(replace(pipeline_report(), goal="memory"), PIPELINE, ratio=Ratio(0.52, 0.5, 0.55))
    expected = "A picture takes 590 MiB of memory instead of 720 MiB, at 0.52 times the speed (95 % interval 0.50 to"
    assert headline(sweep).startswith(expected)


def test_the_price_in_memory_is_told() -> None:
    assert summarise_report(network_report()).price == "It takes 480 MiB of memory, 130 MiB less than the baseline."
    for peak, words in ((1000, "390 MiB more than the baseline"), (608, "as much as the baseline within the noise")):
        assert words in summarise_report(changed(network_report(), "network", peak_bytes=peak * MIB)).price


def test_a_choice_that_only_keeps_the_bounds_is_no_gain() -> None:
    sweep = changed(
        replace(network_report(), bounds=Bounds(max_memory=500 * MIB)), "network", ratio=Ratio(0.9, 0.8, 1.1)
    )
    summary = summarise_report(sweep)
    assert summary.outcome == "bounds" and summary.gain is None
    assert summary.headline.startswith(
        "Chosen: openvino f32, bf16, shapes static, streams 2, since the baseline violates"
    )
    assert "Its speed is 0.90x the baseline's (0.80 to 1.10)" in summary.headline


@pytest.mark.parametrize("goal", ["throughput", "cost"])
def test_networks_are_told_by_their_batches_where_these_were_aimed_at(goal: Any) -> None:
    """The candidate with the highest throughput need not be the fastest at two rows."""
    sweep = changed(replace(pipeline_report(), goal=goal), "denoiser", batch={"2": 0.02, "8": 0.01})
    base = sweep.trial("denoiser", sweep.baselines["denoiser"])
    slow = replace(base, batch={"2": 0.05, "8": 0.04})
    sweep = replace(sweep, trials=tuple(slow if trial is base else trial for trial in sweep.trials))
    text = " ".join(summary_sentences(sweep))
    assert (
        "denoiser on openvino f32, bf16, shapes static, streams 2 (4.00x the samples a second at batch size 8)" in text
    )


def test_the_price_of_a_thousand() -> None:
    assert price_per_thousand(replace(pipeline_report(), price=7.2), 0.5) == pytest.approx(1)  # 500 s of 3600
    assert price_per_thousand(pipeline_report(), 0.5) is None


def test_quality_choice_networks_and_the_fastest_that_was_turned_down_are_told_in_this_order() -> None:
    quality, choice, components, rejected = summary_sentences(pipeline_report())
    assert (
        "24.1 dB PSNR and 0.937 SSIM" in quality
        and "92.1 %" in quality
        and "compared with 92.7 % of the baseline's" in quality
    )
    assert "PSNR of at least 20 dB" in choice and "cache interval 3" in choice
    assert "14 of 23 candidates" in choice
    assert components.startswith(
        "Components: denoiser on openvino f32, bf16, shapes static, streams 2 (4.85x) and decoder on"
    )
    assert "steps 12 (8.91x): the score falls by 6.2 points" in rejected


def test_a_network_without_pictures_is_told_by_its_outputs() -> None:
    assert summary_sentences(network_report())[0] == "Its outputs have an SQNR of 37.1 dB relative to the baseline's."


def test_equal_results_are_told_as_equal() -> None:
    pictures = pipeline_report().trial("pipeline", pipeline_report().chosen["pipeline"]).pictures
    assert pictures is not None
    same = replace(pictures, psnr=99.0, worst_psnr=99.0, score=None)
    assert summary_sentences(changed(pipeline_report(), "pipeline", pictures=same))[0] == (
        "Its pictures of the same prompts and seeds are equal to the baseline's."
    )


def test_where_the_baseline_stays_nothing_is_claimed() -> None:
    sweep = replace(pipeline_report(), chosen=pipeline_report().baselines)
    assert headline(sweep) == "The baseline stays: stillhouse sampling, networks baseline.", "a better one is accepted"
    doubtful = tuple(
        replace(trial, ratio=Ratio(1.29, 0.77, 2.38)) if trial.candidate.component == PIPELINE else trial
        for trial in sweep.trials
    )
    sweep = replace(sweep, trials=doubtful)
    assert headline(sweep) == (
        "The baseline stays: no accepted candidate is better than stillhouse sampling, networks baseline "
        "for the goal latency beyond doubt."
    )
    sentences = summary_sentences(sweep)
    assert not any("PSNR" in sentence and "relative to" in sentence for sentence in sentences)
    assert sentences[0].startswith("The goal was the shortest time")
    nearest = "The nearest candidate, stillhouse sampling, networks chosen, reached 1.29x the baseline"
    assert sentences[1] == f"{nearest}, with a 95 % interval of 0.77 to 2.38."
    assert summarise_report(sweep).tiles == ()


def test_a_reference_that_could_not_be_run_is_told() -> None:
    sweep = network_report()
    failed = Trial(sweep.trials[0].candidate, "failed", "onnxruntime refused the input: expected [1, 3, 320, 320]")
    summary = summarise_report(replace(sweep, trials=(failed,), baselines={}, chosen={}, finished=False))
    assert summary.headline == (
        "The reference could not be measured: onnxruntime refused the input: expected [1, 3, 320, 320]; "
        "nothing was chosen."
    )
    assert summary.sentences[-1].startswith("The sweep was interrupted")


def test_warnings_are_part_of_the_summary() -> None:
    assert summarise_report(replace(pipeline_report(), warnings=("made-up inputs",))).warnings == ("made-up inputs",)


def test_where_nothing_was_chosen_nothing_is_claimed() -> None:
    assert headline(replace(pipeline_report(), chosen={})) == "Nothing was chosen."
    empty = replace(pipeline_report(), trials=(), chosen={}, baselines={}, bounds=Bounds())
    assert headline(empty) == "Nothing was chosen."
    expected = "The goal was the shortest time, without bounds. 0 of 0 candidates were accepted."
    assert summary_sentences(empty) == (expected,)


def test_several_networks_without_a_pipeline_are_told_one_by_one() -> None:
    networks = tuple(trial for trial in pipeline_report().trials if trial.candidate.component != "pipeline")
    sweep = replace(pipeline_report(), trials=networks)
    assert summary_component(sweep) is None
    assert headline(sweep).startswith("Components: denoiser on openvino f32, bf16") and "decoder" in headline(sweep)


def test_a_sweep_that_was_cut_off_says_so() -> None:
    assert summary_sentences(replace(pipeline_report(), finished=False))[-1].startswith(
        "The sweep was interrupted after 5 min 41 s"
    )
    assert not any("interrupted" in sentence for sentence in summary_sentences(pipeline_report()))


def test_a_choice_without_bounds_says_that() -> None:
    assert "without bounds" in " ".join(summary_sentences(replace(pipeline_report(), bounds=Bounds())))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("gone", ["seconds", "ratio", "peak_bytes", "pictures", "fidelity", "batch"])
def test_what_was_not_measured_is_not_told(goal: Any, gone: str) -> None:
    missing: Any = {} if gone in ("batch", "fidelity") else None
    for component, sweep in (("pipeline", pipeline_report()), ("network", network_report())):
        bare = changed(replace(sweep, goal=goal), component, **{gone: missing})
        text = " ".join([headline(bare), *summary_sentences(bare)])
        assert "None" not in text and "nan" not in text


def test_pictures_of_other_networks_than_the_chosen_are_named() -> None:
    sweep = pipeline_report()
    assert not any("Whole pictures were measured with" in sentence for sentence in summary_sentences(sweep))
    same = replace(sweep, evaluated_with={"denoiser": sweep.chosen["denoiser"]})
    assert summary_sentences(same) == summary_sentences(sweep)
    other = replace(sweep, evaluated_with={"denoiser": sweep.baselines["denoiser"]})
    assert any("Whole pictures were measured with denoiser on" in sentence for sentence in summary_sentences(other))


def test_where_whole_pictures_take_too_long_the_network_is_told() -> None:
    sweep = network_report()
    variant = Trial(
        Candidate(PIPELINE, "stillhouse", "sampling", options={"steps": "12"}), "skipped", "15 min a picture"
    )
    report = replace(sweep, trials=(*sweep.trials, variant))
    assert summary_component(report) == "network" and headline(report) == headline(sweep)
