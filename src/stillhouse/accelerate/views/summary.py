"""Summary of a report: what won, by how much, at what price, or that the baseline stays.

The console, the page and the spreadsheet show one `Summary`, so that they cannot contradict each other. A sentence
claims a gain only where the lower end of the gain's interval is above 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Goal, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial, choose_networks
from stillhouse.accelerate.selection.gain import beats_baseline, best_batch, goal_gain
from stillhouse.accelerate.views.formatting import (
    describe_bounds,
    format_bytes,
    format_duration,
    format_interval,
    format_percent,
    format_psnr,
    format_significant,
    format_speedup,
    format_sqnr,
    join_words,
    printable,
)
from stillhouse.accelerate.views.rows import ReportRow, baseline_and_chosen, report_components, report_rows
from stillhouse.measure.clock import Ratio

GOAL_PHRASES: dict[Goal, str] = {
    "latency": "the shortest time",
    "throughput": "the most samples a second",
    "memory": "the least memory",
    "cost": "the lowest price",
}
"""What each goal of the choice optimizes, as words for a sentence."""

Outcome = Literal["gain", "bounds", "baseline", "networks", "nothing"]
"""End of a sweep. gain: a candidate beats the baseline. bounds: the baseline violates a bound, and the best candidate
that satisfies all bounds was chosen, although it does not beat the baseline. baseline: the baseline stays. networks:
several networks were chosen, each by itself. nothing: nothing was chosen.
"""
_ROUNDING = 0.01
"""Relative error of a printed number of three digits, by which the ratio of two printed times may leave an interval."""


@dataclass(frozen=True, slots=True)
class SummaryTile:
    """A number of the choice, as text with its unit.

    Args:
        label: name of the number.
        value: number of the chosen candidate.
        note: text beside the number, such as the baseline's number or an interval; may be empty.
    """

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a report says, computed once and shown by every view.

    Args:
        outcome: end of the sweep.
        component: the network that the headline is about, or "pipeline"; None for several networks, or for none.
        baseline, chosen: rows of its baseline and of the chosen candidate; None where there is none.
        gain: how many times better the choice is for the goal, with its interval; None where no gain is claimed.
        headline: sentence about the outcome.
        price: sentence about what the gain costs or saves in memory; empty where nothing is known.
        sentences: further sentences about accuracy, goal, bounds, networks and an interruption.
        tiles: numbers of the choice beside the baseline's, the gain first; empty where the baseline stays.
        warnings: sentences about what makes the results less certain.
        statuses: number of candidates by verdict; verdicts without candidates are left out.
    """

    outcome: Outcome
    component: str | None
    baseline: ReportRow | None
    chosen: ReportRow | None
    gain: Ratio | None
    headline: str
    price: str
    sentences: tuple[str, ...]
    tiles: tuple[SummaryTile, ...]
    warnings: tuple[str, ...]
    statuses: Mapping[str, int]


def summarise_report(report: Report) -> Summary:
    """Return the summary of a report."""
    component = summary_component(report)
    baseline, chosen = baseline_and_chosen(report, component) if component else (None, None)
    outcome = _find_outcome(report, baseline, chosen)
    gain = goal_gain(chosen.trial, baseline.trial, report.goal) if outcome == "gain" and chosen and baseline else None
    return Summary(
        outcome=outcome,
        component=component,
        baseline=baseline,
        chosen=chosen,
        gain=gain,
        headline=_describe_outcome(report, outcome, baseline, chosen, gain),
        price=_describe_memory(report, outcome, baseline, chosen),
        sentences=_describe_rest(report, outcome, component, chosen),
        tiles=_list_tiles(report, outcome, baseline, chosen, gain),
        warnings=tuple(printable(warning) for warning in report.warnings),
        statuses=count_statuses(report),
    )


def headline(report: Report) -> str:
    """Return a sentence about what the chosen candidate gains over the baseline, or that the baseline stays."""
    return summarise_report(report).headline


def summary_sentences(report: Report) -> tuple[str, ...]:
    """Return the sentences of a report that follow the headline; sentences without content are left out.

    The sentences are about the accuracy and the reason of the choice, the chosen networks, the fastest rejected
    candidate, and an interruption.
    """
    return summarise_report(report).sentences


def summary_component(report: Report) -> str | None:
    """Return the name of the component that the summary's headline is about: "pipeline", or the only timed network.

    The result is None where several networks were timed but no whole pipeline was chosen, or where nothing was timed.
    """
    names = [name for name in report_components(report) if any(trial.ratio for trial in report.trials_of(name))]
    networks = [name for name in names if name != PIPELINE]
    has_choice = baseline_and_chosen(report, PIPELINE)[1] is not None
    if has_choice or (PIPELINE in names and not report.chosen):
        return PIPELINE
    return networks[0] if len(networks) == 1 else None


def price_per_thousand(report: Report, seconds: float) -> float | None:
    """Return the price of a thousand runs in the report's currency; None where the user gave no price of an hour.

    Args:
        report: report with the price of one hour of the machine.
        seconds: duration of one run.
    """
    return None if report.price is None else report.price / 3600 * seconds * 1000


def count_statuses(report: Report) -> dict[str, int]:
    """Return the number of a report's candidates by verdict; verdicts without candidates are left out."""
    statuses = [trial.status for trial in report.trials]
    names = ("accepted", "rejected", "failed", "excluded", "skipped")
    return {status: statuses.count(status) for status in names if status in statuses}


def _find_outcome(report: Report, baseline: ReportRow | None, chosen: ReportRow | None) -> Outcome:
    if chosen is not None:
        if chosen.baseline:
            return "baseline"
        is_gain = baseline is not None and beats_baseline(chosen.trial, baseline.trial, report.goal)
        return "gain" if is_gain else "bounds"
    choices = [baseline_and_chosen(report, name)[1] for name in report_components(report)]
    rows = [row for row in choices if row is not None]
    if not rows:
        return "nothing"
    return "baseline" if all(row.baseline for row in rows) else "networks"


def _describe_outcome(
    report: Report, outcome: Outcome, baseline: ReportRow | None, chosen: ReportRow | None, gain: Ratio | None
) -> str:
    if outcome == "gain" and baseline and chosen and gain:
        return _describe_gain(report, baseline, chosen, gain)
    if outcome == "bounds" and chosen:
        cause = "the baseline violates a bound" if baseline else "there is no baseline to compare with"
        return f"Chosen: {chosen.name}, since {cause}.{_describe_speed(baseline, chosen)}"
    if outcome == "baseline":
        return _describe_baseline(report, chosen)
    if outcome == "networks":
        return _describe_networks(report)
    return _describe_missing_reference(report) or "Nothing was chosen."


def _describe_baseline(report: Report, chosen: ReportRow | None) -> str:
    """Return a sentence that the baseline stays, with the cause where no accepted candidate of its component beats it.

    Args:
        chosen: row of the baseline; None where every one of several networks keeps its baseline.
    """
    name = chosen.name if chosen else "the original of each network"
    baselines = [chosen] if chosen else [baseline_and_chosen(report, name)[0] for name in report_components(report)]
    if any(_beating_trials(report, row) for row in baselines if row):
        return f"The baseline stays: {name}."
    return f"The baseline stays: no accepted candidate is better than {name} for the goal {report.goal} beyond doubt."


def _beating_trials(report: Report, baseline: ReportRow) -> list[Trial]:
    """Return the accepted trials that beat the baseline for the goal, but were not eligible for the choice.

    Such a pipeline was measured with networks that are not accepted, or such a network is not exact enough.
    """
    trials = report.trials_of(baseline.trial.candidate.component)
    accepted = [trial for trial in trials if trial.status == "accepted" and trial is not baseline.trial]
    return [
        trial
        for trial in accepted
        if trial.candidate.recipe != "baseline" and beats_baseline(trial, baseline.trial, report.goal)
    ]


def _describe_gain(report: Report, baseline: ReportRow, chosen: ReportRow, gain: Ratio) -> str:
    """Return a sentence with the gain for the goal, between the measured values that it is computed from."""
    is_pipeline = chosen.trial.candidate.component == PIPELINE
    subject, unit = ("A picture", "pictures") if is_pipeline else ("One call", "samples")
    spread = f"95 % interval {format_interval(gain)}"
    if report.goal == "memory":
        before, after = (format_bytes(row.trial.peak_bytes or 0) for row in (baseline, chosen))
        return f"{subject} takes {after} of memory instead of {before}{_add_speed(chosen)}."
    best, baseline_best = best_batch(chosen.trial), best_batch(baseline.trial)
    if report.goal == "latency" or best is None or baseline_best is None:
        return _describe_faster(report, subject, baseline, chosen)
    at, before_at = f" at batch size {best[0]}", f" at batch size {baseline_best[0]}" * (best[0] != baseline_best[0])
    if report.goal == "cost" and report.price is not None:
        cost, before = (
            format_significant(price_per_thousand(report, seconds) or 0) for _, seconds in (best, baseline_best)
        )
        return (
            f"A thousand {unit} cost {cost} {printable(report.currency)}{at} instead of {before}{before_at}: "
            f"{format_significant(gain.value)} times as many for the same price ({spread})."
        )
    rate, before = (format_significant(1 / seconds) for _, seconds in (best, baseline_best))
    factor = f"{format_significant(gain.value)} times as many ({spread})"
    return f"Throughput is {rate} {unit} a second{at} instead of {before}{before_at}: {factor}."


def _describe_faster(report: Report, subject: str, baseline: ReportRow, chosen: ReportRow) -> str:
    """Return a sentence with the speed-up of one call, and with the median times of the rounds that gave it.

    The speed-up is a mean over pairs of runs. If the machine's speed changes between the rounds, the ratio of the two
    medians may lie outside the speed-up's interval. The sentence then names the medians after the speed-up.
    """
    factor, times = _format_faster(chosen), _median_seconds(baseline, chosen)
    if times is None:
        return f"{subject} is {factor}."
    before, after = map(format_duration, times)
    if not _agrees(times[0] / times[1], chosen.interval):
        ratio = format_significant(times[0] / times[1])
        drift = (
            f"The medians, {after} and {before} of the baseline, have the ratio {ratio}: the machine's speed drifted"
        )
        return f"{subject} is {factor}, by pairs of runs. {drift}."
    if report.goal == "cost" and report.price is not None:
        before, after = (format_significant(price_per_thousand(report, seconds) or 0) for seconds in times)
        things = "pictures" if subject == "A picture" else "calls"
        return f"A thousand {things} cost {after} {printable(report.currency)} instead of {before}: {factor}."
    return f"{subject} takes {after} instead of {before}: {factor}."


def _median_seconds(baseline: ReportRow | None, chosen: ReportRow) -> tuple[float, float] | None:
    """Return the median seconds of the baseline and of a candidate, of the same rounds if these were recorded."""
    before = chosen.trial.baseline_seconds or (baseline.trial.seconds if baseline else None)
    return (before.median, chosen.trial.seconds.median) if before and chosen.trial.seconds else None


def _agrees(value: float, interval: Ratio | None) -> bool:
    return interval is not None and (1 - _ROUNDING) * interval.low <= value <= (1 + _ROUNDING) * interval.high


def _format_faster(row: ReportRow) -> str:
    """Return the speed-up of a candidate as text; only a speed-up that is above 1 beyond doubt is called faster."""
    if row.interval is None:
        return "not timed next to the baseline"
    words = "times as fast" if row.interval.low > 1 else "times the speed"
    return f"{format_significant(row.interval.value)} {words} (95 % interval {format_interval(row.interval)})"


def _add_speed(row: ReportRow) -> str:
    if row.interval is None:
        return ""
    return f", and is {_format_faster(row)}" if row.interval.low > 1 else f", at {_format_faster(row)}"


def _describe_speed(baseline: ReportRow | None, chosen: ReportRow) -> str:
    """Return a sentence, after a space, with the speed of a candidate that does not beat the baseline."""
    if chosen.interval is None:
        return ""
    times = _median_seconds(baseline, chosen)
    medians = (
        f"; the median is {format_duration(times[1])}, the baseline's {format_duration(times[0])}" if times else ""
    )
    speed = f"{format_speedup(chosen.interval.value)} the baseline's ({format_interval(chosen.interval)})"
    return f" Its speed is {speed}{medians}."


def _describe_missing_reference(report: Report) -> str:
    """Return a sentence that the reference could not be measured; empty if every component has a baseline.

    Without a reference nothing can be compared, so that nothing is chosen.
    """
    for name in report_components(report):
        references = [trial for trial in report.trials_of(name) if _is_reference(trial)]
        if name not in report.baselines and references and references[0].status == "failed":
            reason = printable(references[0].reason).rstrip(".")
            return f"The reference could not be measured: {reason}; nothing was chosen."
    return ""


def _is_reference(trial: Trial) -> bool:
    candidate = trial.candidate
    return candidate.backend == "onnxruntime" and candidate.recipe in ("f32", "baseline")


def _describe_memory(report: Report, outcome: Outcome, baseline: ReportRow | None, chosen: ReportRow | None) -> str:
    """Return a sentence about the memory of the choice; empty where the goal is memory, since the headline has it."""
    if outcome not in ("gain", "bounds") or not (baseline and chosen) or report.goal == "memory":
        return ""
    peak, before = chosen.trial.peak_bytes, baseline.trial.peak_bytes
    if not peak or not before:
        return ""
    gain = goal_gain(chosen.trial, baseline.trial, "memory")
    if gain and gain.low <= 1 <= gain.high:
        return f"It takes {format_bytes(peak)} of memory, as much as the baseline within the noise."
    difference = f"{format_bytes(abs(peak - before))} {'more' if peak > before else 'less'}"
    return f"It takes {format_bytes(peak)} of memory, {difference} than the baseline."


def _describe_rest(
    report: Report, outcome: Outcome, component: str | None, chosen: ReportRow | None
) -> tuple[str, ...]:
    is_winner = outcome in ("gain", "bounds")
    names = (component,) if component else report_components(report)
    sentences = [
        _describe_quality(chosen.trial) if chosen and is_winner else "",
        _describe_choice(report, outcome, chosen),
        _describe_nearest(report, component) if outcome == "baseline" and component else "",
        _describe_networks(report) if component == PIPELINE and is_winner and not report.chosen_student else "",
        "" if report.chosen_student else _describe_evaluated_with(report, outcome),
        *(_describe_fastest_rejected(report_rows(report, name)) for name in names),
        "" if report.finished else _describe_unfinished(report),
    ]
    return tuple(sentence for sentence in sentences if sentence)


def _describe_quality(trial: Trial) -> str:
    if pictures := trial.pictures:
        equal = pictures.worst_psnr >= 99
        difference = (
            "are equal to the baseline's"
            if equal
            else f"have {format_psnr(pictures.psnr)} dB PSNR and {pictures.ssim:.3f} SSIM relative to the baseline's"
        )
        fidelity = f"Its pictures of the same prompts and seeds {difference}"
        if pictures.score is None:
            return f"{fidelity}."
        comparison = (
            ""
            if pictures.baseline_score is None
            else f", compared with {format_percent(pictures.baseline_score)} of the baseline's"
        )
        score = f"{format_percent(pictures.score)} of {pictures.count} are correct in every property"
        return f"{fidelity}; {score}{comparison}."
    if worst := trial.worst_fidelity:
        equal = worst.sqnr >= 999
        difference = "are equal to" if equal else f"have an SQNR of {format_sqnr(worst.sqnr)} dB relative to"
        return f"Its outputs {difference} the baseline's."
    return ""


def _describe_choice(report: Report, outcome: Outcome, chosen: ReportRow | None) -> str:
    count = sum(trial.status == "accepted" for trial in report.trials)
    bounds = describe_bounds(report.bounds)
    constraints = f", with {join_words(bounds)}" if bounds else ", without bounds"
    is_choice = outcome in ("gain", "bounds", "networks")
    name = f": {chosen.name}" if chosen and is_choice else ""
    goal = f"{'Chosen for' if is_choice else 'The goal was'} {GOAL_PHRASES[report.goal]}{constraints}{name}"
    return f"{goal}. {count} of {len(report.trials)} candidates were accepted."


def _describe_nearest(report: Report, component: str) -> str:
    """Return a sentence about the best accepted candidate, which does not beat the baseline; empty if there is none."""
    baseline = baseline_and_chosen(report, component)[0]
    others = [row.trial for row in report_rows(report, component) if not row.baseline]
    nearest = best_trial((trial for trial in others if trial.candidate.recipe != "baseline"), report.goal)
    gain = goal_gain(nearest, baseline.trial, report.goal) if nearest and baseline else None
    if nearest is None or baseline is None or gain is None or _beating_trials(report, baseline):
        return ""
    name = printable(nearest.candidate.name)
    if report.goal == "memory":
        peaks = (format_bytes(trial.peak_bytes or 0) for trial in (nearest, baseline.trial))
        return "The nearest candidate, {}, takes {} of memory, the baseline {}.".format(name, *peaks)
    figures = f"{format_speedup(gain.value)} the baseline, with a 95 % interval of {format_interval(gain)}"
    return f"The nearest candidate, {name}, reached {figures}."


def _describe_networks(report: Report) -> str:
    descriptions = []
    for name in report_components(report):
        baseline, chosen = baseline_and_chosen(report, name)
        if name != PIPELINE and chosen is not None:
            descriptions.append(f"{printable(name)} on {chosen.name}{_format_gain(report.goal, baseline, chosen)}")
    return f"Components: {join_words(tuple(descriptions))}." if descriptions else ""


def _format_gain(goal: Goal, baseline: ReportRow | None, chosen: ReportRow) -> str:
    """Return the gain of a chosen candidate over the baseline as text in parentheses, after a space.

    For the goals throughput and cost the text is like ` (2.30x the samples a second at batch size 8)`, for memory like
    ` (480 MiB, the baseline 610 MiB)`, for latency like ` (2.30x)`, the speed-up. For the baseline itself the text is
    ` (the baseline)`.
    """
    if chosen.baseline:
        return " (the baseline)"
    gain = goal_gain(chosen.trial, baseline.trial, goal) if baseline else None
    if gain is None or baseline is None:
        return ""
    if goal == "memory":
        peaks = (format_bytes(row.trial.peak_bytes or 0) for row in (chosen, baseline))
        return " ({}, the baseline {})".format(*peaks)
    best = best_batch(chosen.trial)
    if goal != "latency" and best and baseline.trial.batch:
        return f" ({format_speedup(gain.value)} the samples a second at batch size {best[0]})"
    return f" ({format_speedup(gain.value)})"


def _describe_evaluated_with(report: Report, outcome: Outcome) -> str:
    """Return a sentence that names the networks with which whole pictures were measured, if the choice needs others.

    The sentence is empty if these are the networks that are chosen one by one for the goal.
    """
    wanted = choose_networks(report, report.goal, report.bounds).chosen if outcome == "baseline" else report.chosen
    measured = dict(report.evaluated_with)
    for trial in report.trials_of(PIPELINE):
        if trial.candidate.key == report.chosen.get(PIPELINE):
            measured |= report.networks_of(trial.candidate)
    others = {name: key for name, key in measured.items() if wanted.get(name) != key}
    descriptions = [f"{printable(name)} on {report.trial(name, key).candidate.name}" for name, key in others.items()]
    if not descriptions:
        return ""
    aim = f"the networks that are best for the goal {report.goal}" if outcome == "baseline" else "the chosen components"
    return f"Whole pictures were measured with {join_words(tuple(descriptions))}; run the sweep again to measure {aim}."


def _describe_fastest_rejected(component_rows: tuple[ReportRow, ...]) -> str:
    """Return a sentence about the fastest rejected candidate; empty if none is faster than the choice beyond doubt.

    Args:
        component_rows: rows of one network or of the whole pipeline, fastest first.
    """
    chosen = max(next((row.speed for row in component_rows if row.chosen), None) or 1.0, 1.0)
    rejected = next(
        (
            row
            for row in component_rows
            if row.trial.status == "rejected" and row.interval is not None and row.interval.low > chosen
        ),
        None,
    )
    return (
        f"Faster but rejected: {rejected.name} ({format_speedup(rejected.speed or 0)}): {rejected.reason.rstrip('.')}."
        if rejected
        else ""
    )


def _describe_unfinished(report: Report) -> str:
    return f"The sweep was interrupted after {format_duration(report.seconds)}; the report is incomplete."


def _list_tiles(
    report: Report, outcome: Outcome, baseline: ReportRow | None, chosen: ReportRow | None, gain: Ratio | None
) -> tuple[SummaryTile, ...]:
    if chosen is None or outcome not in ("gain", "bounds"):
        return ()
    trial, times = chosen.trial, _median_seconds(baseline, chosen)
    unit = "One picture" if trial.candidate.component == PIPELINE else "One call"
    tiles = (
        SummaryTile(*_gain_tile(report.goal, gain)) if gain else None,
        _speed_tile(chosen) if gain is None or report.goal != "latency" else None,
        SummaryTile(unit, format_duration(times[1]), f"baseline {format_duration(times[0])}") if times else None,
        _cost_tile(report, times) if times else None,
        *_quality_tiles(trial),
        SummaryTile("Peak memory", format_bytes(trial.peak_bytes), _memory_note(baseline))
        if trial.peak_bytes
        else None,
    )
    return tuple(tile for tile in tiles if tile)


def _gain_tile(goal: Goal, gain: Ratio) -> tuple[str, str, str]:
    label = {"latency": "as fast", "memory": "less memory"}.get(goal, "the samples a second")
    note = "beyond the noise of 2 %" if goal == "memory" else f"95 % interval {format_interval(gain)}"
    return label, format_speedup(gain.value), note


def _speed_tile(row: ReportRow) -> SummaryTile | None:
    if row.interval is None:
        return None
    return SummaryTile("Speed", format_speedup(row.interval.value), f"95 % interval {format_interval(row.interval)}")


def _cost_tile(report: Report, times: tuple[float, float]) -> SummaryTile | None:
    if report.price is None:
        return None
    before, after = (format_significant(price_per_thousand(report, seconds) or 0) for seconds in times)
    return SummaryTile(f"Price of 1,000, {printable(report.currency)}", after, f"baseline {before}")


def _quality_tiles(trial: Trial) -> tuple[SummaryTile, ...]:
    pictures, worst = trial.pictures, trial.worst_fidelity
    if pictures is None:
        return (SummaryTile("SQNR", _with_unit(format_sqnr(worst.sqnr)), "of outputs, worst probe"),) if worst else ()
    psnr = SummaryTile("PSNR", _with_unit(format_psnr(pictures.psnr)), "of same-seed pictures")
    if pictures.score is None:
        return (psnr,)
    before = "" if pictures.baseline_score is None else f"baseline {format_percent(pictures.baseline_score)}"
    return SummaryTile("Score", format_percent(pictures.score), before), psnr


def _memory_note(baseline: ReportRow | None) -> str:
    return f"baseline {format_bytes(baseline.trial.peak_bytes)}" if baseline and baseline.trial.peak_bytes else ""


def _with_unit(decibels: str) -> str:
    return decibels if decibels in ("equal", "none") else f"{decibels} dB"
