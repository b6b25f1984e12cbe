"""What was chosen and why, in words that need no table."""

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
"""What each goal looks for."""


def summary_component(report: Report) -> str | None:
    """The component that stands for the whole: the pipeline, or the only network; None where neither is there."""
    names = [name for name in report_components(report) if any(trial.ratio for trial in report.trials_of(name))]
    return PIPELINE if PIPELINE in names else names[0] if len(names) == 1 else None


def headline(report: Report) -> str:
    """One sentence: what the choice gains, from end to end."""
    whole = summary_component(report)
    if whole is None:
        return _describe_networks(report) or "Nothing was chosen."
    base, chosen = baseline_and_chosen(report, whole)
    if chosen is None:
        return "Nothing was chosen."
    if chosen.baseline:
        return f"The baseline stays, {chosen.name}: nothing that was accepted is better for {report.goal}."
    return _describe_gain(report, whole, base, chosen)


def summary_sentences(report: Report) -> tuple[str, ...]:
    """The sentences after the headline: what it costs in quality, why this one, what runs, what was turned down."""
    whole = summary_component(report)
    chosen = baseline_and_chosen(report, whole)[1] if whole else None
    told = [
        _describe_quality(chosen.trial) if chosen and not chosen.baseline else "",
        _describe_choice(report, chosen),
        _describe_networks(report) if whole == PIPELINE and not report.chosen_student else "",
        "" if report.chosen_student else _describe_evaluated_with(report),
        *(
            _describe_fastest_rejected(report_rows(report, name))
            for name in ((whole,) if whole else report_components(report))
        ),
        "" if report.finished else _describe_unfinished(report),
    ]
    return tuple(sentence for sentence in told if sentence)


def price_per_thousand(report: Report, seconds: float) -> float | None:
    """Money for a thousand runs of so many seconds each; None where no price was told."""
    return None if report.price is None else report.price / 3600 * seconds * 1000


def _describe_gain(report: Report, component: str, base: ReportRow | None, chosen: ReportRow) -> str:
    one = "A picture" if component == PIPELINE else "One call"
    old, new = base.trial if base else None, chosen.trial
    if report.goal == "memory" and old and old.peak_bytes and new.peak_bytes:
        faster = f", and is {_format_faster(chosen)}" if chosen.speed else ""
        return (
            f"{one} takes {format_bytes(new.peak_bytes)} of memory instead of {format_bytes(old.peak_bytes)}{faster}."
        )
    if report.goal == "throughput" and old and old.batch and new.batch:
        (many, fast), (_, slow) = _best_batch(new), _best_batch(old)
        things = "pictures" if component == PIPELINE else "samples"
        told = f"{format_significant(fast)} {things} a second, {many} at a time, instead of {format_significant(slow)}"
        return f"It makes {told}: {format_significant(fast / slow)} times as many."
    if new.seconds is None or chosen.speed is None:
        return f"Chosen: {chosen.name}."
    if report.goal == "cost" and report.price is not None and old and old.seconds:
        paid, before = (
            format_significant(price_per_thousand(report, one.median) or 0) for one in (new.seconds, old.seconds)
        )
        many = "A thousand pictures cost" if component == PIPELINE else "A thousand calls cost"
        return f"{many} {paid} {printable(report.currency)} instead of {before}: {_format_faster(chosen)}."
    instead = f" instead of {format_duration(old.seconds.median)}" if old and old.seconds else ""
    return f"{one} takes {format_duration(new.seconds.median)}{instead}: {_format_faster(chosen)}."


def _best_batch(trial: Trial) -> tuple[str, float]:
    """The batch size with the most samples a second, and how many these are."""
    rows_at_once = min(trial.batch, key=lambda count: trial.batch[count])
    return rows_at_once, 1 / trial.batch[rows_at_once]


def _format_faster(row: ReportRow) -> str:
    spread = f" (95 % interval {format_interval(row.trial.ratio)})" if row.trial.ratio else ""
    return f"{format_significant(row.speed or 0)} times as fast{spread}"


def _describe_quality(trial: Trial) -> str:
    if pictures := trial.pictures:
        equal = pictures.worst_psnr >= 99
        far = "are equal to" if equal else f"lie at {format_psnr(pictures.psnr)} dB PSNR, SSIM {pictures.ssim:.3f} from"
        told = f"Its pictures, same prompts and seeds, {far} the baseline's"
        if pictures.score is None:
            return f"{told}."
        before = (
            ""
            if pictures.baseline_score is None
            else f", against {format_percent(pictures.baseline_score)} of the baseline's"
        )
        return f"{told}; {format_percent(pictures.score)} of {pictures.count} show all that was asked{before}."
    if worst := trial.worst_fidelity:
        equal = worst.sqnr >= 999
        return f"Its outputs {'are equal to' if equal else f'lie at {format_sqnr(worst.sqnr)} dB SQNR from'} the baseline's."
    return ""


def _describe_choice(report: Report, chosen: ReportRow | None) -> str:
    count = sum(trial.status == "accepted" for trial in report.trials)
    asked = describe_bounds(report.bounds)
    kept = f", keeping {join_words(asked)}" if asked else ", without any bound"
    name = f": {chosen.name}" if chosen else ""
    verb = "Chosen" if report.chosen else "Asked"
    return (
        f"{verb} for {GOAL_PHRASES[report.goal]}{kept}{name}. {count} of {len(report.trials)} candidates were accepted."
    )


def _describe_networks(report: Report) -> str:
    told = []
    for name in report_components(report):
        base, chosen = baseline_and_chosen(report, name)
        if name != PIPELINE and chosen is not None:
            told.append(f"{printable(name)} on {chosen.name}{_format_gain(report.goal, base, chosen)}")
    return f"It runs {join_words(tuple(told))}." if told else ""


def _format_gain(goal: Goal, base: ReportRow | None, chosen: ReportRow) -> str:
    """What a network gains in what was aimed at, in brackets."""
    if chosen.baseline:
        return ""
    if goal in ("throughput", "cost") and base and base.trial.batch and chosen.trial.batch:
        (many, fast), (_, slow) = _best_batch(chosen.trial), _best_batch(base.trial)
        return f" ({format_speedup(fast / slow)} the samples a second, {many} at a time)"
    return f" ({format_speedup(chosen.speed)})" if chosen.speed else ""


def _describe_evaluated_with(report: Report) -> str:
    """Which networks the whole pictures were measured with, where these are not the chosen ones."""
    others = {name: key for name, key in report.evaluated_with.items() if report.chosen.get(name) != key}
    told = [f"{printable(name)} on {report.trial(name, key).candidate.name}" for name, key in others.items()]
    if not told:
        return ""
    return (
        f"Whole pictures were measured with {join_words(tuple(told))}; run the sweep again to measure them with these."
    )


def _describe_fastest_rejected(component_rows: tuple[ReportRow, ...]) -> str:
    """The fastest one that was rejected, where it was faster than the choice."""
    chosen = next((row.speed for row in component_rows if row.chosen), None) or 1.0
    lost = next((row for row in component_rows if row.trial.status == "rejected" and (row.speed or 0) > chosen), None)
    return (
        f"Faster, and rejected: {lost.name} ({format_speedup(lost.speed or 0)}): {lost.reason.rstrip('.')}."
        if lost
        else ""
    )


def _describe_unfinished(report: Report) -> str:
    return (
        f"The sweep was cut off after {format_duration(report.seconds)}; what it did not reach is not in this report."
    )
