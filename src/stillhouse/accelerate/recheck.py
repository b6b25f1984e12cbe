"""A sweep's result, measured again: is it still as fast, and as good, as its report says?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.accelerate.attempt import Bench, attempt
from stillhouse.accelerate.candidate import NETWORK, PIPELINE
from stillhouse.accelerate.check import missed
from stillhouse.accelerate.probe import PROBES
from stillhouse.accelerate.race import Effort
from stillhouse.accelerate.report import Report
from stillhouse.accelerate.target import original
from stillhouse.accelerate.trial import Trial
from stillhouse.errors import PipelineError
from stillhouse.measure.clock import Ratio
from stillhouse.models.manifest import TRIALS

RECHECKED = "rechecked"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one component: the trial of the report, today's, and what is wrong, empty if nothing."""

    component: str
    before: Trial
    today: Trial
    wrong: str


def recheck(directory: Path, report: Report, threads: int | None = None) -> Iterator[Finding]:
    """Measure every chosen network beside its baseline again, on the probes of the sweep.

    Raises:
        PipelineError: the directory lacks the probes or a graph that the report names.
    """
    for component, key in report.chosen.items():
        if component not in report.baselines or component == PIPELINE:
            continue
        before, baseline = report.trial(component, key), report.trial(component, report.baselines[component])
        bench = _bench(directory, report, component, before, threads)
        first, reference = attempt(baseline.candidate, bench, None)
        if reference is None:
            yield Finding(component, before, first, f"the baseline does not run: {first.reason}")
            continue
        try:
            today = first if before.candidate == baseline.candidate else attempt(before.candidate, bench, reference)[0]
        finally:
            reference.subject.kill()
        yield Finding(component, before, today, _wrong(before, today, report))


def _bench(directory: Path, report: Report, component: str, before: Trial, threads: int | None) -> Bench:
    probes = directory / TRIALS / component / PROBES
    if component == NETWORK:
        baseline = report.trial(component, report.baselines[component])
        graph = directory / (baseline.graph or "")
    else:
        graph = directory / original(directory)[component].graph
    for path in (probes, graph):
        if not path.is_file():
            raise PipelineError(f"{path} is missing", fix="run the sweep again with `stillhouse accelerate`")
    return Bench(
        folder=directory / TRIALS / component / RECHECKED,
        root=directory,
        graph=graph,
        probes=probes,
        bounds=report.bounds,
        threads=threads,
        effort=Effort(least=8, most=30, seconds=10.0),
    )


def _wrong(before: Trial, today: Trial, report: Report) -> str:
    if today.status == "failed":
        return today.reason
    if reason := missed(today, report.bounds):
        return reason
    assert before.ratio is not None and today.ratio is not None
    if today.ratio.high < before.ratio.low:
        return f"it is {_told(today.ratio)} times as fast as the baseline, and was {_told(before.ratio)}"
    return ""


def _told(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
