"""Regression check: measure again what a sweep (`stillhouse accelerate`) chose, and compare with the sweep's report."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import CALIBRATION_FILE, PROBES_FILE
from stillhouse.accelerate.evaluation.accuracy import SCREENING_PICTURES, find_violation, judge_trial
from stillhouse.accelerate.evaluation.baseline import measure_baseline
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.context import ARTIFACTS_FOLDER, EvaluationContext
from stillhouse.accelerate.evaluation.evaluate import evaluate
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.options import AccelerateOptions, resolve_memory_limit
from stillhouse.accelerate.records.candidate import DISTILLED, NETWORK, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.pipeline_processes import BASELINE_PIPELINE, PipelineProcesses, process_candidate
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, make_step_cache
from stillhouse.accelerate.state import SweepState
from stillhouse.accelerate.workspace import Workspace, f32_components, original_components, original_manifest
from stillhouse.errors import PipelineError
from stillhouse.measure.clock import Ratio, run_interleaved
from stillhouse.pipelines.manifest import TRIALS

RECHECK_FOLDER = "rechecked"
TIMING_BUDGET = TimingBudget(min_rounds=8, max_rounds=30, seconds=10.0)
"""Limits on rounds and seconds of the timing of one network next to its f32 baseline."""
PIPELINE_ROUNDS = 10
"""How often the whole pipeline and the f32 baseline pipeline are timed, in turns."""


@dataclass(frozen=True, slots=True)
class RegressionResult:
    """Result of the regression check of one network or of the whole pipeline.

    Args:
        component: name of the network, such as "denoiser"; "pipeline" for the whole pipeline.
        recorded: measurements in the report of the sweep.
        measured: measurements of this check.
        problem: description of the regression; empty where there is none.
    """

    component: str
    recorded: Trial
    measured: Trial
    problem: str


def check_regression(directory: Path, report: Report, threads: int | None = None) -> Iterator[RegressionResult]:
    """Measure again what a sweep chose: each network next to its f32 baseline, then the whole pipeline.

    Networks run on the inputs that the sweep recorded. If the sweep chose a distilled student, only the whole pipeline
    is measured.

    Args:
        directory: output directory of `stillhouse accelerate`.
        report: report of the sweep in this directory.
        threads: maximum number of threads of each network; None: the number of the sweep.

    Yields:
        a result for each network, and last for the whole pipeline if the report has a choice for it.

    Raises:
        PipelineError: the report has no choice, or recorded inputs or a graph are missing from the directory.
    """
    if not report.chosen:
        raise PipelineError(
            f"nothing was chosen in {directory}: no choice is within the bounds",
            fix="run `stillhouse choose` with other bounds",
        )
    directory, threads = directory.absolute(), threads or report.threads
    for component, key in report.chosen.items():
        if component not in report.baselines or component == PIPELINE or report.chosen_student:
            continue
        recorded, baseline = report.trial(component, key), report.trial(component, report.baselines[component])
        context = _evaluation_context(directory, report, component, recorded, threads)
        baseline_trial, baseline_run = measure_baseline(baseline.candidate, context)
        if baseline_run is None:
            yield RegressionResult(
                component, recorded, baseline_trial, f"the baseline does not run: {baseline_trial.reason}"
            )
            continue
        try:
            measured = (
                baseline_trial
                if recorded.candidate == baseline.candidate
                else evaluate(recorded.candidate, context, baseline_run)
            )
        finally:
            baseline_run.process.kill()
        yield RegressionResult(component, recorded, measured, _find_problem(recorded, measured, report))
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
            raise PipelineError(f"{path} is missing", fix="measure again with `stillhouse accelerate`")
    return EvaluationContext(
        folder=folder / RECHECK_FOLDER,
        artifacts=folder / ARTIFACTS_FOLDER,
        root=directory,
        graph=graph,
        probes=folder / PROBES_FILE,
        calibration=folder / CALIBRATION_FILE if (folder / CALIBRATION_FILE).is_file() else None,
        bounds=report.bounds,
        rows=recorded.rows,
        pipeline=None if component == NETWORK else directory,
        defaults=None if component == NETWORK else original_manifest(directory).defaults,
        threads=threads,
        memory_limit=resolve_memory_limit(report.memory_limit, report.machine),
        timing_budget=TIMING_BUDGET,
        measure_batches=len(recorded.batch) > 1,
    )


def _find_problem(recorded: Trial, measured: Trial, report: Report) -> str:
    if measured.status == "failed":
        return measured.reason
    if violation := find_violation(measured, report.bounds):
        return violation
    return _find_slowdown(recorded, measured)


def _find_slowdown(recorded: Trial, measured: Trial) -> str:
    assert recorded.ratio is not None and measured.ratio is not None
    if measured.ratio.high < recorded.ratio.low:
        return f"speed-up over the baseline is {_format_ratio(measured.ratio)}, was {_format_ratio(recorded.ratio)}"
    return ""


def _format_ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _check_pipeline(directory: Path, report: Report, threads: int | None) -> RegressionResult:
    """Measure speed and pictures of the chosen pipeline again, next to the f32 baseline pipeline.

    Args:
        directory: output directory of `stillhouse accelerate`.
        report: report in this directory.
        threads: maximum number of threads of each network; None: the backend's default.
    """
    recorded = report.trial(PIPELINE, report.chosen[PIPELINE])
    manifest = original_manifest(directory)
    options = AccelerateOptions(memory_limit=report.memory_limit, threads=threads)
    state = SweepState(Workspace(report.source, directory, (), is_pipeline=True), options, report)
    chosen = chosen_components(directory, report)
    defaults = chosen_defaults(directory, report)
    with ExitStack() as stack:
        processes = PipelineProcesses(state, manifest, directory / TRIALS / PIPELINE / RECHECK_FOLDER, stack)
        try:
            opened = process_candidate(recorded.candidate)
            step_cache = make_step_cache(directory, chosen) if "cache_interval" in opened.options else None
            is_open = processes.open(BASELINE_PIPELINE, f32_components(directory), manifest.defaults)
            if is_open and recorded.candidate.recipe == DISTILLED:
                is_open = processes.open_student(recorded.candidate)
            elif is_open and recorded.candidate != BASELINE_PIPELINE:
                is_open = processes.open(opened, chosen, defaults, step_cache)
            if is_open:
                measured = _time_against_baseline(
                    processes, recorded.candidate, processes.evaluate(recorded.candidate, SCREENING_PICTURES)
                )
            else:
                measured = Trial(recorded.candidate, "failed", state.report.trials[-1].reason)
        except CandidateError as failure:
            measured = Trial(recorded.candidate, "failed", str(failure))
    if measured.status == "failed":
        return RegressionResult(PIPELINE, recorded, measured, measured.reason)
    verdict = judge_trial(measured, report.bounds)
    problem = verdict.reason if verdict.status == "rejected" else _find_slowdown(recorded, measured)
    return RegressionResult(PIPELINE, recorded, measured, problem)


def _time_against_baseline(processes: PipelineProcesses, candidate: Candidate, trial: Trial) -> Trial:
    timers = {pipeline.key: partial(processes.timer(pipeline), 1) for pipeline in (BASELINE_PIPELINE, candidate)}
    seconds = run_interleaved(timers, PIPELINE_ROUNDS)
    return trial.with_timings(seconds[candidate.key], baseline_seconds=seconds[BASELINE_PIPELINE.key])
