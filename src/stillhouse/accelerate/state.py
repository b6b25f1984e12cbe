"""State of a sweep (run of `stillhouse accelerate`): directory, options, clock, and the report of results so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

from stillhouse.accelerate.options import AccelerateOptions, resolve_memory_limit
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import choose_networks, choose_trials
from stillhouse.accelerate.workspace import Workspace

_TRIALS_SHARE = 0.95
"""Share of the time budget in which measurements begin. The remaining 5 % is for writing reports."""
_DEADLINE_SHARE = 1.04
"""Share of the time budget after which a measurement that is still running is ended. A run then stays within 1.1 times
its budget, because reports are written in the remaining time.
"""
_MIN_TIMEOUT = 1.0
"""Minimum timeout in seconds of one command to a candidate's process, even after the end of the time budget."""

ProgressCallback = Callable[[str, float, float], None]
"""Function that reports progress. Its arguments: the current activity, the number of finished items, the total number.
"""


class SweepState:
    """State of one sweep (run of `stillhouse accelerate`). This class writes no files.

    Args:
        workspace: working directory and source, from `prepare_workspace`.
        options: goal of the sweep, limits, and which candidates to try.
        report: measurements so far; later measurements are added.
        on_progress: called with the current activity before each part of the work.
    """

    def __init__(
        self,
        workspace: Workspace,
        options: AccelerateOptions,
        report: Report,
        on_progress: ProgressCallback = lambda activity, done, total: None,
    ) -> None:
        self.workspace, self.options, self.report, self.on_progress = workspace, options, report, on_progress
        self.start_time = monotonic()

    @property
    def timeout(self) -> float:
        """Return the seconds that one command to a candidate's process may take.

        The result is the timeout of the options, or the time until `deadline` if that is less, but at least
        `_MIN_TIMEOUT`.
        """
        return min(self.options.timeout, max(_MIN_TIMEOUT, self.deadline - monotonic()))

    @property
    def deadline(self) -> float:
        """Return the time of `time.monotonic` at which running measurements are ended; infinity without a budget."""
        budget = float("inf") if self.options.budget is None else self.options.budget
        return self.start_time + _DEADLINE_SHARE * budget

    @property
    def memory_limit(self) -> int | None:
        """Return the bytes that all open candidate processes may use together; None: no limit."""
        return resolve_memory_limit(self.options.memory_limit, self.report.machine)

    def seconds_left(self, share: float = 1.0) -> float:
        """Return the seconds until a share of the time budget for measurements is used; infinity without a budget.

        The result is negative once the time has passed.

        Args:
            share: 0 to 1; 1 is all of the time for measurements.
        """
        if self.options.budget is None:
            return float("inf")
        return share * _TRIALS_SHARE * self.options.budget - (monotonic() - self.start_time)

    def add_trial(self, trial: Trial) -> None:
        """Add a trial (a candidate with its measurements) to the report; replace an earlier trial of its candidate."""
        key = (trial.candidate.component, trial.candidate.key)
        others = [other for other in self.report.trials if (other.candidate.component, other.candidate.key) != key]
        self.save_report(replace(self.report, trials=(*others, trial)))

    def find_trial(self, candidate: Candidate) -> Trial | None:
        """Return the report's trial (measurements) of a candidate; None where the candidate was not evaluated yet.

        A skipped trial counts only if it was timed.
        """
        trials = [trial for trial in self.report.trials_of(candidate.component) if trial.candidate.key == candidate.key]
        return next((trial for trial in trials if trial.status != "skipped" or trial.ratio), None)

    def chosen_report(self) -> Report:
        """Return a copy of the report that chooses the best candidate of each component from the trials so far."""
        return choose_trials(self.report, self.options.goal, self.report.bounds)

    def add_warning(self, sentence: str) -> None:
        """Add a sentence to the warnings of the report, unless the report has it already."""
        if sentence not in self.report.warnings:
            self.save_report(replace(self.report, warnings=(*self.report.warnings, sentence)))

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Add the duration of the `with` block to the seconds that the report has for an activity of this name."""
        start = monotonic()
        try:
            yield
        finally:
            self.add_seconds(name, monotonic() - start)

    def add_seconds(self, activity: str, seconds: float) -> None:
        """Add seconds to the duration that the report has for an activity, such as measuring."""
        total = self.report.activities.get(activity, 0.0) + seconds
        self.report = replace(self.report, activities={**self.report.activities, activity: total})

    def chosen_networks(self) -> Report:
        """Return a copy of the report that chooses the best candidate of each network by itself, and no pipeline."""
        return choose_networks(self.report, self.options.goal, self.report.bounds)

    def save_report(self, report: Report) -> None:
        """Replace the report in memory. A subclass may also write the report to a file."""
        self.report = report
