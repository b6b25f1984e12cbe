"""The final: candidates whose intervals overlap the fastest one's are timed once more, all in the same rounds."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic

from stillhouse.accelerate.evaluation.candidate_process import Subject, SubjectFailed
from stillhouse.accelerate.evaluation.evaluate import Bench, Reference, lap_of
from stillhouse.accelerate.evaluation.latency import Effort, Lap, calls_for
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_of
from stillhouse.measure.clock import paired_ratio

MOST = 4
_FINALS = 3
BASELINE = ""
"""The reference's key among the seconds of a contest."""
FINAL = Effort(least=18, most=48, width=0.02, seconds=120.0)
_OPENINGS = 3
_SLOW = 5.0
"""Seconds of an opening that is not repeated."""
_FEWEST = 3
"""Rounds of networks so slow that no more fit into the time."""

Compare = Callable[[Sequence[Trial]], Mapping[str, Sequence[float]]]
"""Seconds of one call of the baseline and of each trial's candidate that could be opened, by key; nothing where there
is no time for it."""


def finalists(trials: Sequence[Trial], memory: int | None = None) -> list[Trial]:
    """Accepted trials that may be the fastest, as far as their intervals tell; no more than fit into the memory."""
    best = best_of(trials, "latency")
    if best is None or best.ratio is None:
        return []
    near = [
        trial
        for trial in trials
        if trial.status == "accepted"
        and trial.ratio
        and trial.ratio.high >= min(best.ratio.low, 0.95 * best.ratio.value)
    ]
    near = sorted(near, key=lambda trial: -(trial.ratio.value if trial.ratio else 0.0))[:MOST]
    if memory is not None:
        while len(near) > 1 and sum(trial.peak_bytes or 0 for trial in near) > memory:
            near.pop()
    return near


def final(trials: Sequence[Trial], bench: Bench, reference: Reference, effort: Effort = FINAL) -> list[Trial]:
    """The finalists' trials with ratios that were taken side by side; none where there is nothing to decide."""
    memory = None if bench.memory is None else bench.memory - reference.subject.taken
    began = monotonic()

    def compare(near: Sequence[Trial]) -> Mapping[str, Sequence[float]]:
        left = effort.seconds - (monotonic() - began)
        return side_by_side(near, bench, reference, replace(effort, seconds=left)) if left > 0 else {}

    return finals(trials, compare, memory)


def finals(trials: Sequence[Trial], compare: Compare, memory: int | None = None) -> list[Trial]:
    """Finals until the fastest was in one: the trials that were, with the ratios of their last.

    The fastest of many short races is not as fast as it looked (the winner's curse), and falls back in its final.
    Whoever leads then has a final with those beside it, too, up to `_FINALS` in all.
    """
    standing = {trial.candidate.key: trial for trial in trials}
    timed: dict[str, Trial] = {}
    seen: set[str] = set()
    for _ in range(_FINALS):
        near = finalists(list(standing.values()), memory)
        if len(near) < 2 or near[0].candidate.key in seen:
            break
        seen.update(trial.candidate.key for trial in near)
        try:
            seconds = compare(near)
        except SubjectFailed:
            break
        if not seconds:
            break
        for trial in near:
            if taken := seconds.get(trial.candidate.key):
                timed[trial.candidate.key] = trial.timed(taken, beside=seconds[BASELINE])
        standing |= timed
    return list(timed.values())


def side_by_side(
    trials: Sequence[Trial], bench: Bench, reference: Reference, effort: Effort = FINAL
) -> dict[str, list[float]]:
    """Seconds of one call, by candidate key and of the baseline, all taken in the same rounds; each in its own process.

    Processes that open quickly are opened `_OPENINGS` times: one that has its threads and its memory in lucky places
    is faster than its like for as long as it lives.

    Raises:
        SubjectFailed: one that was opened did not answer. What cannot be opened is left out.
    """
    is_slow = any((trial.open_seconds or 0) + (trial.first_seconds or 0) > _SLOW for trial in trials)
    openings = 1 if is_slow else _OPENINGS
    least, most = (math.ceil(rounds / openings) for rounds in (effort.least, effort.most))
    share = replace(effort, least=least, most=most, seconds=effort.seconds / openings)
    parts = [_opened(trials, bench, reference, share) for _ in range(openings)]
    return {key: [lap for part in parts for lap in part[key]] for key in parts[0] if all(key in part for part in parts)}


def _opened(trials: Sequence[Trial], bench: Bench, reference: Reference, effort: Effort) -> dict[str, list[float]]:
    with ExitStack() as stack:
        laps = {BASELINE: lap_of(reference.subject, bench.limit)}
        for trial in trials:
            if trial.candidate == reference.subject.task.candidate:
                continue
            try:
                subject = stack.enter_context(Subject(bench.task(trial.candidate), bench.memory, (reference.subject,)))
                if trial.artefact and trial.graph:
                    subject.ask("use", str(bench.root / trial.graph), limit=bench.limit)
                subject.ask("open", limit=bench.limit)
            except SubjectFailed:
                continue
            laps[trial.candidate.key] = lap_of(subject, bench.limit)
        return contest(laps, effort)


def contest(laps: Mapping[str, Lap], effort: Effort, clock: Callable[[], float] = monotonic) -> dict[str, list[float]]:
    """Seconds of one call of each, in rounds, until no rival of the fastest can be faster by more than `effort.width`.

    >>> contest({"": lambda calls: 2.0 * calls, "one": lambda calls: 1.0 * calls}, Effort(least=2, most=8))
    {'': [2.0, 2.0], 'one': [1.0, 1.0]}
    """
    began = clock()
    calls = {key: calls_for(lap) for key, lap in laps.items()}
    seconds: dict[str, list[float]] = {key: [] for key in laps}
    while (rounds := len(seconds[BASELINE])) < effort.most:
        for key in list(laps)[:: -1 if rounds % 2 else 1]:
            seconds[key].append(laps[key](calls[key]) / calls[key])
        late = clock() - began > effort.seconds
        if (rounds + 1 >= effort.least and _is_known(seconds, effort.width)) or (late and rounds + 1 >= _FEWEST):
            break
    return seconds


def _is_known(seconds: Mapping[str, list[float]], width: float) -> bool:
    """Whether no rival of the fastest is faster by more than `width`, with 95 % certainty."""
    fastest = max(seconds, key=lambda key: paired_ratio(seconds[BASELINE], seconds[key]).value)
    return all(paired_ratio(taken, seconds[fastest]).low >= 1 - width for taken in seconds.values())
