"""A sweep's result, measured again: is it still as fast, and as good, as its report says?"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import PROBES
from stillhouse.accelerate.evaluation.accuracy import ROUGH, judged, missed
from stillhouse.accelerate.evaluation.candidate_process import SubjectFailed
from stillhouse.accelerate.evaluation.evaluate import MADE_FOLDER, Bench, attempt
from stillhouse.accelerate.evaluation.latency import Effort
from stillhouse.accelerate.options import allowed
from stillhouse.accelerate.records.candidate import DISTILLED, NETWORK, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.pipeline_processes import CHOSEN, PLAIN, Loops
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, step_cache
from stillhouse.accelerate.workspace import Target, original, original_manifest, plain
from stillhouse.core import ImageRequest
from stillhouse.errors import PipelineError
from stillhouse.measure.clock import Ratio, alternate
from stillhouse.pipelines.manifest import TRIALS

RECHECKED = "rechecked"
_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one component: the trial of the report, today's, and what is wrong, empty if nothing."""

    component: str
    before: Trial
    today: Trial
    wrong: str


def recheck(directory: Path, report: Report, threads: int | None = None) -> Iterator[Finding]:
    """Measure every chosen network beside its baseline again, on the probes of the sweep; then whole pictures.

    Where a student makes these, it alone.

    Args:
        directory: of the sweep.
        report: its report.
        threads: at most so many for each network; None: as many as the sweep had.

    Raises:
        PipelineError: nothing was chosen, or the directory lacks the probes or a graph that the report names.
    """
    if not report.chosen:
        raise PipelineError(f"nothing was chosen in {directory}", fix="choose with other bounds, or sweep again")
    directory, threads = directory.absolute(), threads or report.threads
    for component, key in report.chosen.items():
        if component not in report.baselines or component == PIPELINE or report.student:
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
    if PIPELINE in report.chosen:
        yield _pictures(directory, report, threads)


def _bench(directory: Path, report: Report, component: str, before: Trial, threads: int | None) -> Bench:
    folder = directory / TRIALS / component
    if component == NETWORK:
        graph = directory / (report.trial(component, report.baselines[component]).graph or "")
    else:
        graph = directory / original(directory)[component].graph
    for path in (folder / PROBES, graph, directory / (before.graph or "")):
        if not path.is_file():
            raise PipelineError(f"{path} is missing", fix="run the sweep again with `stillhouse accelerate`")
    return Bench(
        folder=folder / RECHECKED,
        made=folder / MADE_FOLDER,
        root=directory,
        graph=graph,
        probes=folder / PROBES,
        bounds=report.bounds,
        rows=before.rows,
        pipeline=None if component == NETWORK else directory,
        defaults=None if component == NETWORK else original_manifest(directory).defaults,
        threads=threads,
        memory=allowed(report.memory, report.machine),
        effort=Effort(least=8, most=30, seconds=10.0),
        batches=len(before.batch) > 1,
    )


def _wrong(before: Trial, today: Trial, report: Report) -> str:
    if today.status == "failed":
        return today.reason
    if reason := missed(today, report.bounds):
        return reason
    return _slower(before, today)


def _slower(before: Trial, today: Trial) -> str:
    assert before.ratio is not None and today.ratio is not None
    if today.ratio.high < before.ratio.low:
        return f"it is {_told(today.ratio)} times as fast as the baseline, and was {_told(before.ratio)}"
    return ""


def _told(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


@dataclass(slots=True)
class _Rechecking:
    """What `Loops` needs of a sweep, where there is none."""

    target: Target
    report: Report
    threads: int | None
    requests: Sequence[ImageRequest] = ()
    limit: float = 900.0
    failed: str = ""

    @property
    def memory(self) -> int | None:
        """As of the sweep."""
        return allowed(self.report.memory, self.report.machine)

    def add(self, trial: Trial) -> None:
        """Keep what went wrong."""
        if trial.status == "failed":
            self.failed = trial.reason


def _pictures(directory: Path, report: Report, threads: int | None) -> Finding:
    """The chosen way to walk with the chosen networks, beside the plain loop."""
    before = report.trial(PIPELINE, report.chosen[PIPELINE])
    manifest = original_manifest(directory)
    state = _Rechecking(Target(report.source, directory, (), is_pipeline=True), report, threads)
    chosen = chosen_components(directory, report)
    defaults = chosen_defaults(directory, report)
    with ExitStack() as stack:
        loops = Loops(state, manifest, directory / TRIALS / PIPELINE / RECHECKED, stack)
        try:
            cache = step_cache(directory, chosen)
            opened = loops.open(PLAIN, plain(directory), manifest.defaults) and (
                loops.open_student(before.candidate)
                if before.candidate.recipe == DISTILLED
                else loops.open(CHOSEN, chosen, defaults, cache)
            )
            if opened:
                today = _timed(loops, before.candidate, loops.measure(before.candidate, ROUGH))
            else:
                today = Trial(before.candidate, "failed", state.failed)
        except SubjectFailed as failure:
            today = Trial(before.candidate, "failed", str(failure))
    if today.status == "failed":
        return Finding(PIPELINE, before, today, today.reason)
    verdict = judged(today, report.bounds)
    wrong = verdict.reason if verdict.status == "rejected" else _slower(before, today)
    return Finding(PIPELINE, before, today, wrong)


def _timed(loops: Loops, candidate: Candidate, trial: Trial) -> Trial:
    seconds = alternate({one.key: partial(loops.lap(one), 1) for one in (PLAIN, candidate)}, _ROUNDS)
    return trial.timed(seconds[candidate.key], beside=seconds[PLAIN.key])
