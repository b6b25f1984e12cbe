"""Rows of the report's tables: the measured candidates of a network, fastest first, with baseline and choice marked."""

from dataclasses import dataclass

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.gain import speed_ratio
from stillhouse.accelerate.views.formatting import printable
from stillhouse.measure.clock import Ratio


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row of a table: a candidate (backend, precision, options of a network) with its measurements.

    Args:
        trial: the candidate with its measurements.
        baseline: whether this is the baseline, which speed-ups and errors refer to.
        chosen: whether this is the chosen candidate of its network.
        speed: speed-up over the baseline, from times of the same rounds if there are any, else from median times; 1 for
            the baseline; None where the candidate was not timed.
        interval: `speed` with its 95 % interval, which always contains it; None where the candidate was not timed in
            the same rounds as the baseline. The baseline's interval shows the noise of the machine around 1.
    """

    trial: Trial
    baseline: bool
    chosen: bool
    speed: float | None
    interval: Ratio | None

    @property
    def name(self) -> str:
        """Return the name of the row's candidate (measured configuration), without unprintable characters."""
        return printable(self.trial.candidate.name)

    @property
    def reason(self) -> str:
        """Return why the row's candidate was not accepted, without unprintable characters; empty if it was accepted."""
        return printable(self.trial.reason)

    @property
    def sqnr(self) -> float | None:
        """Return the lowest SQNR in dB of the outputs for any recorded input; None where outputs were not compared."""
        return None if self.trial.worst_fidelity is None else self.trial.worst_fidelity.sqnr

    @property
    def psnr(self) -> float | None:
        """Return the mean PSNR in dB of the pictures; None where no pictures were compared."""
        return None if self.trial.pictures is None else self.trial.pictures.psnr

    @property
    def accepted(self) -> bool:
        """Return whether the candidate satisfies all bounds, so that it may be chosen."""
        return self.trial.status == "accepted"


def report_components(report: Report) -> tuple[str, ...]:
    """Return the names of the measured networks in the order of measurement; last "pipeline", if it was measured."""
    names = dict.fromkeys(trial.candidate.component for trial in report.trials)
    return tuple(sorted(names, key=lambda name: name == PIPELINE))


def report_rows(report: Report, component: str) -> tuple[ReportRow, ...]:
    """Return a row for each candidate of a network, fastest first.

    Candidates that were not timed are last, in the order of measurement.

    Args:
        report: the report.
        component: name of the network; "pipeline" for whole pipelines.
    """
    baseline = _find_trial(report, component, report.baselines.get(component))
    chosen = _find_trial(report, component, report.chosen.get(component))
    rows = [
        ReportRow(
            trial, trial is baseline, trial is chosen, _speedup(trial, baseline), _interval(trial, trial is baseline)
        )
        for trial in report.trials_of(component)
    ]
    return tuple(sorted(rows, key=lambda row: -(row.speed or 0)))


def baseline_and_chosen(report: Report, component: str) -> tuple[ReportRow | None, ReportRow | None]:
    """Return the rows of a network's baseline and of its chosen candidate; None in place of a missing one."""
    rows = report_rows(report, component)
    return next((row for row in rows if row.baseline), None), next((row for row in rows if row.chosen), None)


def _find_trial(report: Report, component: str, key: str | None) -> Trial | None:
    return next((trial for trial in report.trials_of(component) if trial.candidate.key == key), None)


def _interval(trial: Trial, is_baseline: bool) -> Ratio | None:
    ratio = speed_ratio(trial)
    if ratio is None or not is_baseline:
        return ratio
    return Ratio(1.0, ratio.low / ratio.value, ratio.high / ratio.value)


def _speedup(trial: Trial, baseline: Trial | None) -> float | None:
    if trial is baseline:
        return 1.0
    if trial.ratio is not None:
        return trial.ratio.value
    if trial.seconds is None or baseline is None or baseline.seconds is None:
        return None
    return baseline.seconds.median / trial.seconds.median
