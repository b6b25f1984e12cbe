"""State of a sweep that its stages share: workspace, options, growing report and clock."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from stillhouse.accelerate.options import AccelerateOptions, resolve_memory_limit
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import choose_trials
from stillhouse.accelerate.workspace import Workspace

_TRIALS_SHARE = 0.95
"""Share of the time budget for trials. The rest is for writing reports and for a call that is still running."""
_MIN_TIMEOUT = 20.0
"""Minimum timeout in seconds of one call of a candidate process, even if less of the budget is left."""

ProgressCallback = Callable[[str, float, float], None]
"""Called with the current activity, the number of finished items and their total number."""


class SweepState:
    """State of one sweep, in memory only.

    Args:
        workspace: workspace that `prepare_workspace` returned.
        options: candidates to try, and the goal.
        report: the report to extend.
        on_progress: called before every step.
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
        """Return the seconds that one call of a candidate process may take, limited by the budget that is left."""
        return min(self.options.timeout, max(_MIN_TIMEOUT, self.seconds_left()))

    @property
    def memory_limit(self) -> int | None:
        """Return the bytes that all candidate processes may use together; None where the memory is unknown."""
        return resolve_memory_limit(self.options.memory_limit, self.report.machine)

    def seconds_left(self, share: float = 1.0) -> float:
        """Return the seconds left of a share of this run's budget; infinity without a budget."""
        if self.options.budget is None:
            return float("inf")
        return share * _TRIALS_SHARE * self.options.budget - (monotonic() - self.start_time)

    def add_trial(self, trial: Trial) -> None:
        """Add a trial to the report, replacing an earlier trial of the same candidate."""
        key = (trial.candidate.component, trial.candidate.key)
        others = [other for other in self.report.trials if (other.candidate.component, other.candidate.key) != key]
        self.save_report(replace(self.report, trials=(*others, trial)))

    def find_trial(self, candidate: Candidate) -> Trial | None:
        """Return the trial of a candidate that was already evaluated; None where it has no trial or was skipped."""
        trials = [trial for trial in self.report.trials_of(candidate.component) if trial.candidate.key == candidate.key]
        return next((trial for trial in trials if trial.status != "skipped" or trial.ratio), None)

    def chosen_report(self) -> Report:
        """Return the report with a choice among the trials so far."""
        return choose_trials(self.report, self.options.goal, self.report.bounds)

    def save_report(self, report: Report) -> None:
        """Replace the report."""
        self.report = report
