"""The choice is a pure function of the measurements: within the bounds, not dominated, and better than the baseline."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import GOALS, Bounds, Goal, Report
from stillhouse.accelerate.records.trial import PictureFidelity, Trial
from stillhouse.accelerate.search.sampling_variants import variant_candidate
from stillhouse.accelerate.selection.choose import (
    best_trial,
    choose_networks,
    choose_trial,
    choose_trials,
    judge_trials,
    pareto_front,
)
from stillhouse.accelerate.selection.gain import beats_baseline
from stillhouse.measure.clock import Ratio
from stillhouse.measure.fidelity import Fidelity
from tests.accelerate.trials import make_report, make_trial

RATIOS = st.floats(0.1, 20)
QUALITIES = st.floats(-10, 120)
MEMORIES = st.integers(1, 1 << 34)
TRIALS = st.lists(st.tuples(RATIOS, QUALITIES, MEMORIES), min_size=1, max_size=12).map(
    lambda rows: [make_trial(f"b{i}", ratio, sqnr, peak_bytes=peak) for i, (ratio, sqnr, peak) in enumerate(rows)]
)
MIB, GIB = 1 << 20, 1 << 30
BASELINE = make_trial("reference", 1.0, 999, peak_bytes=2 * GIB, batch={"1": 1.0, "8": 1.0})


def compared(*trials: Trial, baseline: Trial = BASELINE) -> Report:
    """Return a report of these trials and their baseline."""
    return make_report(baseline, *trials, baselines={baseline.candidate.component: baseline.candidate.key})


def winner(report: Report, component: str = "denoiser") -> str:
    """Return the backend of the chosen candidate of a component."""
    return report.trial(component, report.chosen[component]).candidate.backend


def test_the_fastest_that_keeps_its_bounds_is_chosen() -> None:
    report = compared(make_trial("slow", 1.1, 90), make_trial("fast", 3.0, 30), make_trial("wild", 9.0, 5))
    chosen = choose_trials(report, "latency", Bounds(min_sqnr=20))
    assert chosen.chosen == {"denoiser": Candidate("denoiser", "fast").key}
    assert chosen.trial("denoiser", Candidate("denoiser", "wild").key).status == "rejected"
    assert "5.0 dB is below the bound of 20.0" in chosen.trial("denoiser", Candidate("denoiser", "wild").key).reason


def test_looser_bounds_accept_again_what_was_rejected() -> None:
    strict = choose_trials(compared(make_trial("slow"), make_trial("wild", 9.0, 5)), "latency", Bounds(min_sqnr=20))
    assert winner(strict) == "reference"
    loose = choose_trials(strict, "latency", Bounds(min_sqnr=0))
    assert loose.chosen == {"denoiser": Candidate("denoiser", "wild").key}


@pytest.mark.parametrize(("count", "status"), [(24, "skipped"), (64, "skipped"), (256, "accepted")])
def test_few_pictures_can_reject_a_way_to_walk_and_looser_bounds_cannot_make_them_many(count: int, status: str) -> None:
    pictures = PictureFidelity(count, 40.0, 30.0, 0.99, score=0.7, baseline_score=0.9, score_gain=(-0.2, -0.3, -0.1))
    bold = make_trial("bold", 9.0, candidate=variant_candidate({"steps": "4"}), pictures=pictures)
    (strict,) = judge_trials([bold], Bounds(max_score_drop=1.0))
    assert strict.status == "rejected" and "-20.0 points (-30.0 to -10.0)" in strict.reason
    (loose,) = judge_trials([strict], Bounds(max_score_drop=31.0))
    assert loose.status == status


def test_a_way_is_rejected_where_its_interval_rules_it_out_not_where_its_mean_does() -> None:
    unsure = PictureFidelity(24, 40.0, 30.0, 0.99, score=0.8, baseline_score=0.9, score_gain=(-0.083, -0.2, 0.03))
    bold = make_trial("bold", 9.0, candidate=variant_candidate({"steps": "4"}), pictures=unsure)
    (undecided,) = judge_trials([bold], Bounds(max_score_drop=1.0))
    assert (undecided.status, "too few pictures" in undecided.reason) == ("skipped", True)
    sure = replace(unsure, count=1000, score_gain=(0.0, -0.01, 0.01))
    (accepted,) = judge_trials([replace(bold, pictures=sure)], Bounds(max_score_drop=1.0))
    assert (accepted.status, accepted.reason) == ("accepted", "")
    blurred = replace(sure, strict_gain=(-0.1, -0.12, -0.08))
    (rejected,) = judge_trials([replace(bold, pictures=blurred)], Bounds(max_score_drop=1.0))
    assert rejected.status == "rejected", "the stricter score counts, too"


@pytest.mark.parametrize("status", ["failed", "excluded", "skipped"])
def test_what_did_not_run_is_never_chosen(status: str) -> None:
    gone = Trial(Candidate("denoiser", "gone"), status, "it does not work here")  # type: ignore[arg-type]
    decided = choose_trials(compared(gone, make_trial("quick", 1.2)), "latency", Bounds())
    assert decided.chosen == {"denoiser": Candidate("denoiser", "quick").key}
    assert decided.trials[1] == gone


def test_numbers_that_are_not_finite_are_rejected_whatever_the_bounds() -> None:
    broken = replace(make_trial("broken", 9.0), fidelity={"noise 0.1": Fidelity(200.0, 1.0, 0.0, 0.0, nonfinite=1)})
    (decided,) = judge_trials([broken], Bounds())
    assert (decided.status, "NaN" in decided.reason) == ("rejected", True)


def test_a_memory_bound_is_kept() -> None:
    report = compared(make_trial("big", 9.0, peak_bytes=8 << 30), make_trial("small", 2.0, peak_bytes=1 << 30))
    assert choose_trials(report, "latency", Bounds(max_memory=4 << 30)).chosen == {
        "denoiser": Candidate("denoiser", "small").key
    }


def test_each_goal_has_its_own_winner() -> None:
    quick = make_trial("quick", 4.0, peak_bytes=4 << 30, batch={"1": 0.25, "8": 0.2})
    batched = make_trial("batched", 3.0, peak_bytes=5 << 30, batch={"1": 0.33, "8": 0.1})
    small = make_trial("small", 1.0, peak_bytes=1 << 30, batch={"1": 1.0, "8": 1.0})
    winners: dict[Goal, str] = {"latency": "quick", "throughput": "batched", "memory": "small", "cost": "batched"}
    for goal in GOALS:
        chosen = choose_trials(compared(quick, batched, small), goal, Bounds())
        assert chosen.chosen == {"denoiser": Candidate("denoiser", winners[goal]).key}, goal


def test_a_gain_within_the_noise_is_no_gain() -> None:
    doubtful = make_trial("doubtful", 1.29, ratio=Ratio(1.29, 0.77, 2.38), peak_bytes=2 * GIB - 20 * MIB)
    assert winner(choose_trials(compared(doubtful), "latency", Bounds())) == "reference"
    assert winner(choose_trials(compared(doubtful), "memory", Bounds())) == "reference", "1 % less is noise"
    batched = replace(doubtful, batch={"8": 0.7})
    for goal in ("throughput", "cost"):
        assert winner(choose_trials(compared(batched), goal, Bounds())) == "reference", "1 / 0.7 * 0.77 / 1.29 < 1"


def test_the_more_accurate_of_a_tie_is_not_chosen_where_its_gain_is_in_doubt() -> None:
    sure = make_trial("sure", 1.05, 30, ratio=Ratio(1.05, 1.01, 1.09))
    exact = make_trial("exact", 1.05, 120, ratio=Ratio(1.05, 0.99, 1.10))
    assert winner(choose_trials(compared(sure, exact), "latency", Bounds())) == "sure"


def test_without_a_baseline_nothing_is_chosen() -> None:
    assert not choose_trials(make_report(make_trial("fast", 9.0)), "latency", Bounds()).chosen


def test_where_the_baseline_violates_a_bound_the_best_that_does_not_is_chosen() -> None:
    big, small = make_trial("big", 9.0, peak_bytes=8 * GIB), make_trial("small", 0.8, peak_bytes=GIB)
    assert winner(choose_trials(compared(big, small), "latency", Bounds(max_memory=GIB))) == "small"
    assert not choose_trials(compared(big), "latency", Bounds(max_memory=GIB)).chosen


@given(TRIALS, st.sampled_from(GOALS), st.floats(-10, 120))
def test_what_is_chosen_beats_the_baseline_or_is_the_baseline(trials: list[Trial], goal: Goal, minimum: float) -> None:
    decided = choose_trials(compared(*trials), goal, Bounds(min_sqnr=minimum))
    chosen = decided.trial("denoiser", decided.chosen["denoiser"])
    rivals = [trial for trial in decided.trials if trial.status == "accepted" and trial != BASELINE]
    if chosen == BASELINE:
        assert not any(beats_baseline(trial, BASELINE, goal) for trial in rivals)
    else:
        assert chosen.status == "accepted" and beats_baseline(chosen, BASELINE, goal)
    assert choose_trial(rivals, BASELINE, goal, decided.bounds) == chosen


def whole_pictures(*variants: Trial, networks: tuple[Trial, ...] = ()) -> Report:
    """Return a report of variants of a pipeline whose denoiser is chosen for its speed, or is one of `networks`."""
    fast = make_trial("fast", 3.0, peak_bytes=GIB)
    plain = make_trial("", 1.0, candidate=PLAIN, peak_bytes=124 * MIB)
    return make_report(
        *(BASELINE, fast, *networks, plain, *variants),
        baselines={"denoiser": BASELINE.candidate.key, PIPELINE: PLAIN.key},
        evaluated_with={"denoiser": (*networks, fast)[0].candidate.key},
    )


PLAIN = Candidate(PIPELINE, "onnxruntime", "baseline")
STEPS = variant_candidate({"steps": "4"})


def test_the_plain_loop_is_the_choice_where_no_variant_beats_it() -> None:
    """Its networks are then the original ones, whatever gains these had alone."""
    second = make_trial("", 5.0, candidate=Candidate(PIPELINE, "openvino", "baseline"))
    slow = make_trial("", 0.9, candidate=STEPS)
    report = whole_pictures(slow, second)
    assert choose_trials(report, "latency", Bounds()).chosen == report.baselines
    quick = replace(slow, ratio=Ratio(2.0, 1.9, 2.1))
    chosen = choose_trials(whole_pictures(quick, second), "latency", Bounds())
    assert chosen.chosen == {"denoiser": Candidate("denoiser", "fast").key, PIPELINE: STEPS.key}


@pytest.mark.parametrize(("peak", "is_less"), [(243, False), (124, False), (120, False), (65, False), (64, True)])
def test_a_pipeline_for_the_least_memory_needs_less_than_the_plain_loop(peak: int, is_less: bool) -> None:
    """Peaks are compared in units of 64 MiB: 124 MiB are two of them."""
    report = whole_pictures(make_trial("", 4.8, candidate=STEPS, peak_bytes=peak * MIB))
    chosen = choose_trials(report, "memory", Bounds()).chosen
    assert chosen == ({**report.evaluated_with, PIPELINE: STEPS.key} if is_less else report.baselines)


def test_a_pipeline_is_chosen_with_the_networks_that_it_was_measured_with() -> None:
    measured = make_trial("measured", 2.0, 30)
    report = whole_pictures(make_trial("", 4.0, candidate=STEPS), networks=(measured,))
    assert choose_networks(report, "latency", Bounds()).chosen == {"denoiser": Candidate("denoiser", "fast").key}
    expected = {"denoiser": measured.candidate.key, PIPELINE: STEPS.key}
    assert choose_trials(report, "latency", Bounds()).chosen == expected
    rejected = choose_trials(report, "latency", Bounds(min_sqnr=40))
    assert rejected.chosen == report.baselines, "the network that made its pictures is rejected"


def test_before_whole_pictures_were_measured_each_network_is_chosen_by_itself() -> None:
    report = whole_pictures(Trial(STEPS, "skipped", "no time"))
    assert choose_trials(report, "latency", Bounds()).chosen == {"denoiser": Candidate("denoiser", "fast").key}


def test_pictures_must_be_alike_and_where_an_oracle_reads_them_as_right() -> None:
    alike = PictureFidelity(192, 32.0, 28.0, 0.95, score=0.93, baseline_score=0.93, score_gain=(0.0, -0.02, 0.02))
    others = replace(alike, psnr=12.0, ssim=0.4)
    worse = replace(alike, score=0.90, score_gain=(-0.03, -0.05, -0.01))
    bounds = Bounds(min_psnr=25, min_ssim=0.9, max_score_drop=1.0)
    trials = [
        make_trial(name, pictures=fidelity)
        for name, fidelity in (("alike", alike), ("others", others), ("worse", worse))
    ]
    assert [trial.status for trial in judge_trials(trials, bounds)] == ["accepted", "rejected", "rejected"]


@given(TRIALS)
def test_nothing_on_the_front_is_beaten_and_everything_off_it_is(trials: list[Trial]) -> None:
    def objectives(trial: Trial) -> tuple[float, float, float]:
        assert trial.ratio is not None and trial.worst_fidelity is not None and trial.peak_bytes is not None
        return trial.ratio.value, trial.worst_fidelity.sqnr, -trial.peak_bytes

    front = pareto_front(trials)
    for trial in trials:
        beaten = any(
            objectives(other) != objectives(trial)
            and all(a >= b for a, b in zip(objectives(other), objectives(trial), strict=True))
            for other in trials
        )
        assert beaten == (trial not in front)


@given(TRIALS, st.floats(-10, 120))
def test_the_choice_keeps_its_bound_and_no_accepted_one_is_faster(trials: list[Trial], minimum: float) -> None:
    decided = choose_trials(make_report(*trials), "latency", Bounds(min_sqnr=minimum))
    accepted = [trial for trial in decided.trials if trial.status == "accepted"]
    assert not decided.chosen, "there is no baseline"
    best = best_trial(accepted, "latency")
    if best is None:
        return
    assert best.worst_fidelity is not None and best.worst_fidelity.sqnr >= minimum
    assert best.ratio
    assert all(0.97 * trial.ratio.value <= best.ratio.value for trial in accepted if trial.ratio)


def test_of_two_that_no_race_can_tell_apart_the_better_is_chosen() -> None:
    even = compared(make_trial("rough", 2.00, 21), make_trial("exact", 1.96, 119), make_trial("slower", 1.90, 999))
    assert choose_trials(even, "latency", Bounds()).chosen == {"denoiser": Candidate("denoiser", "exact").key}


def test_a_trial_at_the_very_margin_counts_as_equally_fast() -> None:
    even = [make_trial("rough", 1.0, 21), make_trial("exact", 0.97, 119), make_trial("slower", 0.969, 999)]
    best = best_trial(even, "latency")
    assert best and best.candidate.backend == "exact"


def test_of_ways_to_walk_that_are_equally_fast_the_one_with_the_better_pictures_is_chosen() -> None:
    scored = PictureFidelity(192, 32.0, 28.0, 0.95, score=0.9, baseline_score=0.93, score_gain=(-0.03, -0.05, 0.0))
    candidates = [variant_candidate({"steps": steps}) for steps in ("4", "5", "6")]
    pictures = [scored, replace(scored, psnr=20.0, score=0.95), replace(scored, psnr=99.0, score=0.8)]
    trials = [
        make_trial("", 2.0, candidate=candidate, pictures=fidelity, fidelity={})
        for candidate, fidelity in zip(candidates, pictures, strict=True)
    ]
    assert best_trial(trials, "latency") == trials[1]
    unscored = [
        replace(trial, pictures=replace(fidelity, score=None)) for trial, fidelity in zip(trials, pictures, strict=True)
    ]
    assert best_trial(unscored, "latency") == unscored[2]


def test_of_components_that_are_equally_fast_the_more_accurate_one_is_chosen_whatever_its_pictures() -> None:
    pictures = PictureFidelity(192, 99.0, 99.0, 1.0)
    rough, exact = make_trial("rough", 2.0, 21, pictures=pictures), make_trial("exact", 2.0, 60)
    assert best_trial([rough, exact], "latency") == exact


def test_a_trial_without_a_measured_accuracy_counts_as_inaccurate() -> None:
    unknown, poor = make_trial("unknown", 2.0, fidelity={}), make_trial("poor", 2.0, 0.5)
    assert best_trial([unknown, poor], "latency") == poor


@given(TRIALS)
def test_a_careful_component_takes_the_most_accurate_that_beats_the_baseline(trials: list[Trial]) -> None:
    report = replace(compared(*trials), careful=("denoiser",))
    chosen = choose_networks(report, "latency", Bounds(min_sqnr=0.0))
    better = [t for t in chosen.trials if t.status == "accepted" and beats_baseline(t, BASELINE, "latency")]
    expected = max((t.worst_fidelity.sqnr for t in better if t.worst_fidelity), default=999)
    best = chosen.trial("denoiser", chosen.chosen["denoiser"]).worst_fidelity
    assert best and best.sqnr == expected
