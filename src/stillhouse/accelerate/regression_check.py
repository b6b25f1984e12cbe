"""A sweep's result, measured again: is it still as fast, and as good, as its report says?"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE
from stillhouse.accelerate.evaluation.accuracy import SCREENING_PICTURES, find_violation, judge_trial
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.evaluate import ARTIFACTS_FOLDER, EvaluationContext, evaluate
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.options import resolve_memory_limit
from stillhouse.accelerate.records.candidate import DISTILLED, NETWORK, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.pipeline_processes import BASELINE_PIPELINE, CHOSEN_PIPELINE, PipelineProcesses
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, make_step_cache
from stillhouse.accelerate.workspace import Workspace, f32_components, original_components, original_manifest
from stillhouse.core import ImageRequest
from stillhouse.errors import PipelineError
from stillhouse.measure.clock import Ratio, run_interleaved
from stillhouse.pipelines.manifest import TRIALS

RECHECK_FOLDER = "rechecked"
_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class RegressionResult:
    """What was found of one component: the trial of the report, today's, and what is wrong, empty if nothing."""

    component: str
    recorded: Trial
    measured: Trial
    problem: str


def check_regression(directory: Path, report: Report, threads: int | None = None) -> Iterator[RegressionResult]:
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
        if component not in report.baselines or component == PIPELINE or report.chosen_student:
            continue
        before, baseline = report.trial(component, key), report.trial(component, report.baselines[component])
        bench = _evaluation_context(directory, report, component, before, threads)
        first, reference = evaluate(baseline.candidate, bench, None)
        if reference is None:
            yield RegressionResult(component, before, first, f"the baseline does not run: {first.reason}")
            continue
        try:
            today = first if before.candidate == baseline.candidate else evaluate(before.candidate, bench, reference)[0]
        finally:
            reference.process.kill()
        yield RegressionResult(component, before, today, _find_problem(before, today, report))
    if PIPELINE in report.chosen:
        yield _check_pipeline(directory, report, threads)


def _evaluation_context(
    directory: Path, report: Report, component: str, recorded: Trial, threads: int | None
) -> EvaluationContext:
    folder = directory / TRIALS / component
    if component == NETWORK:
        graph = directory / (report.trial(component, report.baselines[component]).graph or "")
    else:
        graph = directory / original_components(directory)[component].graph
    for path in (folder / PROBES_FILE, graph, directory / (recorded.graph or "")):
        if not path.is_file():
            raise PipelineError(f"{path} is missing", fix="run the sweep again with `stillhouse accelerate`")
    return EvaluationContext(
        folder=folder / RECHECK_FOLDER,
        artifacts=folder / ARTIFACTS_FOLDER,
        root=directory,
        graph=graph,
        probes=folder / PROBES_FILE,
        bounds=report.bounds,
        rows=recorded.rows,
        pipeline=None if component == NETWORK else directory,
        defaults=None if component == NETWORK else original_manifest(directory).defaults,
        threads=threads,
        memory_limit=resolve_memory_limit(report.memory_limit, report.machine),
        timing_budget=TimingBudget(min_rounds=8, max_rounds=30, seconds=10.0),
        measure_batches=len(recorded.batch) > 1,
    )


def _find_problem(recorded: Trial, measured: Trial, report: Report) -> str:
    if measured.status == "failed":
        return measured.reason
    if reason := find_violation(measured, report.bounds):
        return reason
    return _find_slowdown(recorded, measured)


def _find_slowdown(recorded: Trial, measured: Trial) -> str:
    assert recorded.ratio is not None and measured.ratio is not None
    if measured.ratio.high < recorded.ratio.low:
        return f"it is {_format_ratio(measured.ratio)} times as fast as the baseline, and was {_format_ratio(recorded.ratio)}"
    return ""


def _format_ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


@dataclass(slots=True)
class _CheckContext:
    """What `Loops` needs of a sweep, where there is none."""

    workspace: Workspace
    report: Report
    threads: int | None
    requests: Sequence[ImageRequest] = ()
    timeout: float = 900.0
    failure_reason: str = ""

    @property
    def memory_limit(self) -> int | None:
        """As of the sweep."""
        return resolve_memory_limit(self.report.memory_limit, self.report.machine)

    def add_trial(self, trial: Trial) -> None:
        """Keep what went wrong."""
        if trial.status == "failed":
            self.failure_reason = trial.reason


def _check_pipeline(directory: Path, report: Report, threads: int | None) -> RegressionResult:
    """The chosen way to walk with the chosen networks, beside the plain loop."""
    before = report.trial(PIPELINE, report.chosen[PIPELINE])
    manifest = original_manifest(directory)
    state = _CheckContext(Workspace(report.source, directory, (), is_pipeline=True), report, threads)
    chosen = chosen_components(directory, report)
    defaults = chosen_defaults(directory, report)
    with ExitStack() as stack:
        loops = PipelineProcesses(state, manifest, directory / TRIALS / PIPELINE / RECHECK_FOLDER, stack)
        try:
            cache = make_step_cache(directory, chosen)
            opened = loops.open(BASELINE_PIPELINE, f32_components(directory), manifest.defaults) and (
                loops.open_student(before.candidate)
                if before.candidate.recipe == DISTILLED
                else loops.open(CHOSEN_PIPELINE, chosen, defaults, cache)
            )
            if opened:
                today = _time_against_baseline(
                    loops, before.candidate, loops.evaluate(before.candidate, SCREENING_PICTURES)
                )
            else:
                today = Trial(before.candidate, "failed", state.failure_reason)
        except CandidateError as failure:
            today = Trial(before.candidate, "failed", str(failure))
    if today.status == "failed":
        return RegressionResult(PIPELINE, before, today, today.reason)
    verdict = judge_trial(today, report.bounds)
    wrong = verdict.reason if verdict.status == "rejected" else _find_slowdown(before, today)
    return RegressionResult(PIPELINE, before, today, wrong)


def _time_against_baseline(processes: PipelineProcesses, candidate: Candidate, trial: Trial) -> Trial:
    seconds = run_interleaved(
        {one.key: partial(processes.timer(one), 1) for one in (BASELINE_PIPELINE, candidate)}, _ROUNDS
    )
    return trial.with_timings(seconds[candidate.key], baseline_seconds=seconds[BASELINE_PIPELINE.key])
