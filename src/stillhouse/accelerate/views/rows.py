"""Table rows of a component: its trials, fastest first, with the baseline and the choice marked."""

from dataclasses import dataclass

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import printable


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A trial in a table.

    Args:
        trial: the trial.
        baseline, chosen: whether ratios refer to this trial, and whether it is the component's choice.
        speed: speed-up over the baseline: the paired ratio, else the ratio of the medians; 1 for the baseline; None
            where the trial was not timed.
    """

    trial: Trial
    baseline: bool
    chosen: bool
    speed: float | None

    @property
    def name(self) -> str:
        """Return the candidate's name as printable text."""
        return printable(self.trial.candidate.name)

    @property
    def reason(self) -> str:
        """Return the reason of the status as printable text."""
        return printable(self.trial.reason)

    @property
    def sqnr(self) -> float | None:
        """Return the SQNR of the worst probe in dB; None where outputs were not compared."""
        return None if self.trial.worst_fidelity is None else self.trial.worst_fidelity.sqnr

    @property
    def psnr(self) -> float | None:
        """Return the mean PSNR over pictures in dB; None where pictures were not compared."""
        return None if self.trial.pictures is None else self.trial.pictures.psnr

    @property
    def accepted(self) -> bool:
        """Return whether the trial may be chosen."""
        return self.trial.status == "accepted"


def report_components(report: Report) -> tuple[str, ...]:
    """Return the component names in the order of the sweep, the whole pipeline last."""
    names = dict.fromkeys(trial.candidate.component for trial in report.trials)
    return tuple(sorted(names, key=lambda name: name == PIPELINE))


def report_rows(report: Report, component: str) -> tuple[ReportRow, ...]:
    """Return the rows of one component, fastest first; untimed trials last, in the order of the sweep."""
    baseline = _find_trial(report, component, report.baselines.get(component))
    chosen = _find_trial(report, component, report.chosen.get(component))
    rows = [
        ReportRow(trial, trial is baseline, trial is chosen, _speedup(trial, baseline))
        for trial in report.trials_of(component)
    ]
    return tuple(sorted(rows, key=lambda row: -(row.speed or 0)))


def baseline_and_chosen(report: Report, component: str) -> tuple[ReportRow | None, ReportRow | None]:
    """Return the rows of the baseline and of the choice; None where the component has none."""
    rows = report_rows(report, component)
    return next((row for row in rows if row.baseline), None), next((row for row in rows if row.chosen), None)


def _find_trial(report: Report, component: str, key: str | None) -> Trial | None:
    return next((trial for trial in report.trials_of(component) if trial.candidate.key == key), None)


def _speedup(trial: Trial, baseline: Trial | None) -> float | None:
    if trial is baseline:
        return 1.0
    if trial.ratio is not None:
        return trial.ratio.value
    if trial.seconds is None or baseline is None or baseline.seconds is None:
        return None
    return baseline.seconds.median / trial.seconds.median
