"""Summary of a report in sentences: what was chosen, why, and what was gained."""

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Goal, Report
from stillhouse.accelerate.records.trial import Trial
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

GOAL_PHRASES: dict[Goal, str] = {
    "latency": "the shortest time",
    "throughput": "the most samples a second",
    "memory": "the least memory",
    "cost": "the lowest price",
}
"""What each goal of the choice optimizes, as words for a sentence."""


def summary_component(report: Report) -> str | None:
    """Return the name of the component that the summary's headline is about: "pipeline", or the only timed network.

    The result is None where several networks were timed, but no whole pipeline, or where nothing was timed.
    """
    names = [name for name in report_components(report) if any(trial.ratio for trial in report.trials_of(name))]
    return PIPELINE if PIPELINE in names else names[0] if len(names) == 1 else None


def headline(report: Report) -> str:
    """Return a sentence about what the chosen candidate gains over the baseline, or that nothing was chosen."""
    component = summary_component(report)
    if component is None:
        return _describe_networks(report) or "Nothing was chosen."
    baseline, chosen = baseline_and_chosen(report, component)
    if chosen is None:
        return "Nothing was chosen."
    if chosen.baseline:
        return f"The baseline, {chosen.name}, is kept: no accepted candidate is better for the goal {report.goal}."
    return _describe_gain(report, component, baseline, chosen)


def summary_sentences(report: Report) -> tuple[str, ...]:
    """Return the sentences of a report that follow the headline; sentences without content are left out.

    The sentences are about the accuracy and the reason of the choice, the chosen networks, the fastest rejected
    candidate, and an interruption.
    """
    component = summary_component(report)
    chosen = baseline_and_chosen(report, component)[1] if component else None
    sentences = [
        _describe_quality(chosen.trial) if chosen and not chosen.baseline else "",
        _describe_choice(report, chosen),
        _describe_networks(report) if component == PIPELINE and not report.chosen_student else "",
        "" if report.chosen_student else _describe_evaluated_with(report),
        *(
            _describe_fastest_rejected(report_rows(report, name))
            for name in ((component,) if component else report_components(report))
        ),
        "" if report.finished else _describe_unfinished(report),
    ]
    return tuple(sentence for sentence in sentences if sentence)


def price_per_thousand(report: Report, seconds: float) -> float | None:
    """Return the price of a thousand runs in the report's currency; None where the user gave no price of an hour.

    Args:
        report: report with the price of one hour of the machine.
        seconds: duration of one run.
    """
    return None if report.price is None else report.price / 3600 * seconds * 1000


def _describe_gain(report: Report, component: str, baseline: ReportRow | None, chosen: ReportRow) -> str:
    subject = "A picture" if component == PIPELINE else "One call"
    reference, actual = baseline.trial if baseline else None, chosen.trial
    if report.goal == "memory" and reference and reference.peak_bytes and actual.peak_bytes:
        faster = f", and is {_format_faster(chosen)}" if chosen.speed else ""
        memory = f"{format_bytes(actual.peak_bytes)} of memory instead of {format_bytes(reference.peak_bytes)}"
        return f"{subject} takes {memory}{faster}."
    if report.goal == "throughput" and reference and reference.batch and actual.batch:
        (batch_size, rate), (_, baseline_rate) = _best_batch(actual), _best_batch(reference)
        unit = "pictures" if component == PIPELINE else "samples"
        throughput = f"{format_significant(rate)} {unit} a second at batch size {batch_size}"
        gain = f"{format_significant(rate / baseline_rate)} times as high"
        return f"Throughput is {throughput}, instead of {format_significant(baseline_rate)}: {gain}."
    if actual.seconds is None or chosen.speed is None:
        return f"Chosen: {chosen.name}."
    if report.goal == "cost" and report.price is not None and reference and reference.seconds:
        price, baseline_price = (
            format_significant(price_per_thousand(report, timing.median) or 0)
            for timing in (actual.seconds, reference.seconds)
        )
        cost = "A thousand pictures cost" if component == PIPELINE else "A thousand calls cost"
        return f"{cost} {price} {printable(report.currency)} instead of {baseline_price}: {_format_faster(chosen)}."
    instead = f" instead of {format_duration(reference.seconds.median)}" if reference and reference.seconds else ""
    return f"{subject} takes {format_duration(actual.seconds.median)}{instead}: {_format_faster(chosen)}."


def _best_batch(trial: Trial) -> tuple[str, float]:
    """Return the batch size at which a candidate has the highest throughput, and its rows per second there."""
    rows_at_once = min(trial.batch, key=lambda count: trial.batch[count])
    return rows_at_once, 1 / trial.batch[rows_at_once]


def _format_faster(row: ReportRow) -> str:
    spread = f" (95 % interval {format_interval(row.trial.ratio)})" if row.trial.ratio else ""
    return f"{format_significant(row.speed or 0)} times as fast{spread}"


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


def _describe_choice(report: Report, chosen: ReportRow | None) -> str:
    count = sum(trial.status == "accepted" for trial in report.trials)
    bounds = describe_bounds(report.bounds)
    constraints = f", with {join_words(bounds)}" if bounds else ", without bounds"
    name = f": {chosen.name}" if chosen else ""
    goal = f"{'Chosen for' if report.chosen else 'The goal was'} {GOAL_PHRASES[report.goal]}{constraints}{name}"
    return f"{goal}. {count} of {len(report.trials)} candidates were accepted."


def _describe_networks(report: Report) -> str:
    descriptions = []
    for name in report_components(report):
        baseline, chosen = baseline_and_chosen(report, name)
        if name != PIPELINE and chosen is not None:
            descriptions.append(f"{printable(name)} on {chosen.name}{_format_gain(report.goal, baseline, chosen)}")
    return f"Components: {join_words(tuple(descriptions))}." if descriptions else ""


def _format_gain(goal: Goal, baseline: ReportRow | None, chosen: ReportRow) -> str:
    """Return the gain of a chosen candidate over the baseline as text in parentheses, after a space.

    For the goals throughput and cost the text is like ` (2.30x the samples a second at batch size 8)`, for other goals
    like ` (2.30x)`, the speed-up. The text is empty for the baseline itself.
    """
    if chosen.baseline:
        return ""
    if goal in ("throughput", "cost") and baseline and baseline.trial.batch and chosen.trial.batch:
        (batch_size, rate), (_, baseline_rate) = _best_batch(chosen.trial), _best_batch(baseline.trial)
        return f" ({format_speedup(rate / baseline_rate)} the samples a second at batch size {batch_size})"
    return f" ({format_speedup(chosen.speed)})" if chosen.speed else ""


def _describe_evaluated_with(report: Report) -> str:
    """Return a sentence that names the networks with which whole pictures were measured, if other networks were chosen.

    The sentence is empty if the measured networks are the chosen ones.
    """
    others = {name: key for name, key in report.evaluated_with.items() if report.chosen.get(name) != key}
    descriptions = [f"{printable(name)} on {report.trial(name, key).candidate.name}" for name, key in others.items()]
    if not descriptions:
        return ""
    components = join_words(tuple(descriptions))
    return f"Whole pictures were measured with {components}; run the sweep again to measure the chosen components."


def _describe_fastest_rejected(component_rows: tuple[ReportRow, ...]) -> str:
    """Return a sentence about the fastest rejected candidate; empty if none is faster than the chosen candidate.

    Args:
        component_rows: rows of one network or of the whole pipeline, fastest first.
    """
    chosen = next((row.speed for row in component_rows if row.chosen), None) or 1.0
    rejected = next(
        (row for row in component_rows if row.trial.status == "rejected" and (row.speed or 0) > chosen), None
    )
    return (
        f"Faster but rejected: {rejected.name} ({format_speedup(rejected.speed or 0)}): {rejected.reason.rstrip('.')}."
        if rejected
        else ""
    )


def _describe_unfinished(report: Report) -> str:
    return f"The sweep was interrupted after {format_duration(report.seconds)}; the report is incomplete."
