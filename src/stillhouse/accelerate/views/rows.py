"""The rows of a component's table: its trials, fastest first, with what a table marks."""

from dataclasses import dataclass

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import printable


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A trial in its table.

    Args:
        trial: what is shown.
        baseline, chosen: whether ratios refer to it, and whether it is the component's choice.
        speed: how many times faster than the baseline: the paired ratio, else that of the medians; 1 for the baseline;
            None where it was not timed.
    """

    trial: Trial
    baseline: bool
    chosen: bool
    speed: float | None

    @property
    def name(self) -> str:
        """The candidate's name, fit to print."""
        return printable(self.trial.candidate.name)

    @property
    def reason(self) -> str:
        """Why it was not accepted, fit to print."""
        return printable(self.trial.reason)

    @property
    def sqnr(self) -> float | None:
        """dB, of the worst probe."""
        return None if self.trial.worst_fidelity is None else self.trial.worst_fidelity.sqnr

    @property
    def psnr(self) -> float | None:
        """dB, the mean over pictures."""
        return None if self.trial.pictures is None else self.trial.pictures.psnr

    @property
    def accepted(self) -> bool:
        """Whether it may be chosen."""
        return self.trial.status == "accepted"


def report_components(report: Report) -> tuple[str, ...]:
    """The networks in the order of the plan, the whole pipeline last."""
    names = dict.fromkeys(trial.candidate.component for trial in report.trials)
    return tuple(sorted(names, key=lambda name: name == PIPELINE))


def report_rows(report: Report, component: str) -> tuple[ReportRow, ...]:
    """The trials of one component, fastest first; those that were not timed last, in the order of the plan."""
    base = _find_trial(report, component, report.baselines.get(component))
    chosen = _find_trial(report, component, report.chosen.get(component))
    found = [
        ReportRow(trial, trial is base, trial is chosen, _speedup(trial, base)) for trial in report.trials_of(component)
    ]
    return tuple(sorted(found, key=lambda row: -(row.speed or 0)))


def baseline_and_chosen(report: Report, component: str) -> tuple[ReportRow | None, ReportRow | None]:
    """The baseline's row and the chosen one's, None where there is none."""
    found = report_rows(report, component)
    return next((row for row in found if row.baseline), None), next((row for row in found if row.chosen), None)


def _find_trial(report: Report, component: str, key: str | None) -> Trial | None:
    return next((trial for trial in report.trials_of(component) if trial.candidate.key == key), None)


def _speedup(trial: Trial, base: Trial | None) -> float | None:
    if trial is base:
        return 1.0
    if trial.ratio is not None:
        return trial.ratio.value
    if trial.seconds is None or base is None or base.seconds is None:
        return None
    return base.seconds.median / trial.seconds.median
