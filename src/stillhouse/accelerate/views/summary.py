"""What was chosen and why, in words that need no table."""

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Goal, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import (
    duration,
    interval,
    listed,
    plain,
    promises,
    psnr,
    share,
    significant,
    size,
    sqnr,
    times,
)
from stillhouse.accelerate.views.rows import Row, components, marked, rows

AIMS: dict[Goal, str] = {
    "latency": "the shortest time",
    "throughput": "the most samples a second",
    "memory": "the least memory",
    "cost": "the lowest price",
}
"""What each goal looks for."""


def subject(report: Report) -> str | None:
    """The component that stands for the whole: the pipeline, or the only network; None where neither is there."""
    names = [name for name in components(report) if any(trial.ratio for trial in report.of(name))]
    return PIPELINE if PIPELINE in names else names[0] if len(names) == 1 else None


def headline(report: Report) -> str:
    """One sentence: what the choice gains, from end to end."""
    whole = subject(report)
    if whole is None:
        return _networks(report) or "Nothing was chosen."
    base, chosen = marked(report, whole)
    if chosen is None:
        return "Nothing was chosen."
    if chosen.baseline:
        return f"The baseline stays, {chosen.name}: nothing that was accepted is better for {report.goal}."
    return _gain(report, whole, base, chosen)


def story(report: Report) -> tuple[str, ...]:
    """The sentences after the headline: what it costs in quality, why this one, what runs, what was turned down."""
    whole = subject(report)
    chosen = marked(report, whole)[1] if whole else None
    told = [
        _quality(chosen.trial) if chosen and not chosen.baseline else "",
        _choice(report, chosen),
        _networks(report) if whole == PIPELINE and not report.student else "",
        "" if report.student else _drawn_with(report),
        *(_turned_down(rows(report, name)) for name in ((whole,) if whole else components(report))),
        "" if report.finished else _unfinished(report),
    ]
    return tuple(sentence for sentence in told if sentence)


def price(report: Report, seconds: float) -> float | None:
    """Money for a thousand runs of so many seconds each; None where no price was told."""
    return None if report.price is None else report.price / 3600 * seconds * 1000


def _gain(report: Report, whole: str, base: Row | None, chosen: Row) -> str:
    one = "A picture" if whole == PIPELINE else "One call"
    old, new = base.trial if base else None, chosen.trial
    if report.goal == "memory" and old and old.peak_bytes and new.peak_bytes:
        faster = f", and is {_faster(chosen)}" if chosen.speed else ""
        return f"{one} takes {size(new.peak_bytes)} of memory instead of {size(old.peak_bytes)}{faster}."
    if report.goal == "throughput" and old and old.batch and new.batch:
        (many, fast), (_, slow) = _best(new), _best(old)
        things = "pictures" if whole == PIPELINE else "samples"
        told = f"{significant(fast)} {things} a second, {many} at a time, instead of {significant(slow)}"
        return f"It makes {told}: {significant(fast / slow)} times as many."
    if new.seconds is None or chosen.speed is None:
        return f"Chosen: {chosen.name}."
    if report.goal == "cost" and report.price is not None and old and old.seconds:
        paid, before = (significant(price(report, one.median) or 0) for one in (new.seconds, old.seconds))
        many = "A thousand pictures cost" if whole == PIPELINE else "A thousand calls cost"
        return f"{many} {paid} {plain(report.currency)} instead of {before}: {_faster(chosen)}."
    instead = f" instead of {duration(old.seconds.median)}" if old and old.seconds else ""
    return f"{one} takes {duration(new.seconds.median)}{instead}: {_faster(chosen)}."


def _best(trial: Trial) -> tuple[str, float]:
    """The batch size with the most samples a second, and how many these are."""
    rows_at_once = min(trial.batch, key=lambda count: trial.batch[count])
    return rows_at_once, 1 / trial.batch[rows_at_once]


def _faster(row: Row) -> str:
    spread = f" (95 % interval {interval(row.trial.ratio)})" if row.trial.ratio else ""
    return f"{significant(row.speed or 0)} times as fast{spread}"


def _quality(trial: Trial) -> str:
    if pictures := trial.pictures:
        equal = pictures.worst_psnr >= 99
        far = "are equal to" if equal else f"lie at {psnr(pictures.psnr)} dB PSNR, SSIM {pictures.ssim:.3f} from"
        told = f"Its pictures, same prompts and seeds, {far} the baseline's"
        if pictures.score is None:
            return f"{told}."
        before = (
            "" if pictures.baseline_score is None else f", against {share(pictures.baseline_score)} of the baseline's"
        )
        return f"{told}; {share(pictures.score)} of {pictures.count} show all that was asked{before}."
    if worst := trial.worst:
        equal = worst.sqnr >= 999
        return f"Its outputs {'are equal to' if equal else f'lie at {sqnr(worst.sqnr)} dB SQNR from'} the baseline's."
    return ""


def _choice(report: Report, chosen: Row | None) -> str:
    count = sum(trial.status == "accepted" for trial in report.trials)
    asked = promises(report.bounds)
    kept = f", keeping {listed(asked)}" if asked else ", without any bound"
    name = f": {chosen.name}" if chosen else ""
    verb = "Chosen" if report.chosen else "Asked"
    return f"{verb} for {AIMS[report.goal]}{kept}{name}. {count} of {len(report.trials)} candidates were accepted."


def _networks(report: Report) -> str:
    told = []
    for name in components(report):
        base, chosen = marked(report, name)
        if name != PIPELINE and chosen is not None:
            told.append(f"{plain(name)} on {chosen.name}{_how_much(report.goal, base, chosen)}")
    return f"It runs {listed(tuple(told))}." if told else ""


def _how_much(goal: Goal, base: Row | None, chosen: Row) -> str:
    """What a network gains in what was aimed at, in brackets."""
    if chosen.baseline:
        return ""
    if goal in ("throughput", "cost") and base and base.trial.batch and chosen.trial.batch:
        (many, fast), (_, slow) = _best(chosen.trial), _best(base.trial)
        return f" ({times(fast / slow)} the samples a second, {many} at a time)"
    return f" ({times(chosen.speed)})" if chosen.speed else ""


def _drawn_with(report: Report) -> str:
    """Which networks the whole pictures were measured with, where these are not the chosen ones."""
    others = {name: key for name, key in report.drawn_with.items() if report.chosen.get(name) != key}
    told = [f"{plain(name)} on {report.trial(name, key).candidate.name}" for name, key in others.items()]
    if not told:
        return ""
    return f"Whole pictures were measured with {listed(tuple(told))}; run the sweep again to measure them with these."


def _turned_down(found: tuple[Row, ...]) -> str:
    """The fastest one that was rejected, where it was faster than the choice."""
    chosen = next((row.speed for row in found if row.chosen), None) or 1.0
    lost = next((row for row in found if row.trial.status == "rejected" and (row.speed or 0) > chosen), None)
    return f"Faster, and rejected: {lost.name} ({times(lost.speed or 0)}): {lost.reason.rstrip('.')}." if lost else ""


def _unfinished(report: Report) -> str:
    return f"The sweep was cut off after {duration(report.seconds)}; what it did not reach is not in this report."
