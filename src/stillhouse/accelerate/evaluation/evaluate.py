"""Evaluate a candidate in its own process: build, open, compare, time, and generate pictures."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.accelerate.calibration.calibration_data import Probe, gather_rows, interleave_rows, read_probes
from stillhouse.accelerate.evaluation.accuracy import (
    compare_pictures,
    compare_probes,
    find_violation,
    is_visually_exact,
    judge_trial,
)
from stillhouse.accelerate.evaluation.batch_scaling import (
    CPU_BATCH_SIZES,
    may_win_at_larger_batch,
    measure_batch_curve,
    opens_quickly,
)
from stillhouse.accelerate.evaluation.candidate_messages import (
    Build,
    Generate,
    GpuMemory,
    Open,
    Release,
    RunLargeBatch,
    RunProbes,
    TimeBatch,
    TimeCalls,
)
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import LARGE_BATCH_FILE, OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.evaluation.latency import TimingBudget, compare_latency
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples, read_candidate_samples, write_sample_images
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.backends.signature import read_signature
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults

PARALLEL_BUILD_BYTES = 256 << 20
"""Maximum size in bytes of a graph with its weights at which several graphs are built in parallel."""
REPRODUCE_FILE = "reproduce.py"
ARTIFACTS_FOLDER = "artifacts"
"""Name of the folder of built graphs, next to the folders of the trials."""


@dataclass(slots=True)
class EvaluationContext:
    """Inputs and limits shared by all candidates of a component.

    Args:
        folder: folder of the component's trials.
        root: the sweep's directory; paths in the report are relative to this directory.
        graph: the component's own graph.
        probes: file of recorded inputs.
        bounds: constraints of acceptance.
        rows: batch size of a probe.
        pipeline: directory of the pipeline that generates pictures; None for a bare ONNX file.
        components: the pipeline's other components by name.
        requests: requests of the compared pictures; empty where pictures would take too long.
        threads: maximum number of threads; None: the backend's default.
        memory_limit: bytes that the candidate's and the baseline's process may use together.
        timeout: seconds of one call of a candidate process.
        timing_budget: rounds and seconds of the latency comparison.
        measure_batches: whether to measure seconds per row by batch size.
        artifacts: folder of built graphs; default: `ARTIFACTS_FOLDER` in `folder`.
        defaults: the pipeline's original defaults; None for a bare ONNX file.
    """

    folder: Path
    root: Path
    graph: Path
    probes: Path
    bounds: Bounds
    rows: int = 1
    pipeline: Path | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    requests: Sequence[ImageRequest] = ()
    threads: int | None = None
    memory_limit: int | None = None
    timeout: float = 600.0
    timing_budget: TimingBudget = field(default_factory=TimingBudget)
    measure_batches: bool = False
    artifacts: Path = Path()
    defaults: Defaults | None = None

    def __post_init__(self) -> None:
        if self.artifacts == Path():
            self.artifacts = self.folder / ARTIFACTS_FOLDER

    def make_task(self, candidate: Candidate) -> CandidateTask:
        """Return the task of a candidate's process."""
        return CandidateTask(
            candidate,
            str(self.graph),
            str(self.folder / candidate.key),
            str(self.artifacts / candidate.artifact_key),
            str(self.probes),
            self.threads,
            str(self.pipeline or ""),
            self.components,
            self.defaults,
        )


@dataclass(slots=True)
class BaselineRun:
    """The open process of the baseline, its outputs for every probe, and its pictures."""

    process: CandidateProcess
    outputs: Sequence[Probe]
    samples: CandidateSamples | None = None


def evaluate(
    candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None
) -> tuple[Trial, BaselineRun | None]:
    """Evaluate a candidate in a process of its own.

    Without `baseline` the candidate becomes the baseline and its process stays open. A baseline that violates a bound,
    such as memory, is still used for comparison.

    Args:
        candidate: candidate to evaluate.
        context: inputs and limits.
        baseline: run to compare with; None: the candidate becomes the baseline.

    Returns:
        the trial, also after an error, and the baseline's run where the candidate became the baseline.
    """
    process = CandidateProcess(context.make_task(candidate), context.memory_limit, _baseline_processes(baseline))
    trial = Trial(candidate, "failed", log=relative_path(process.folder / LOG_FILE, context.root))
    stays_open = False
    try:
        build_artifact(candidate, context, baseline)
        process.start()
        trial = replace(trial, reproduce=_write_reproduce_script(process.folder, context.root))
        trial = _open_and_run(trial, process, context)
        outputs = read_probes(process.folder / OUTPUTS_FILE)
        expected = baseline.outputs if baseline else outputs
        trial = replace(trial, fidelity=compare_probes(expected, outputs))
        trial = _measure_latency(trial, process, baseline, context)
        trial = _check_large_batch(trial, process, expected, context)
        if not process.is_alive:  # the large batch may end the process, and the other checks can still pass
            process.kill()
            process = _reopen(process.task, context, _baseline_processes(baseline))
        samples = None
        if context.requests and (
            baseline is None or not (find_violation(trial, context.bounds) or is_visually_exact(trial))
        ):
            samples = _generate_samples(process, context)
            trial = replace(trial, pictures=_compare_samples(trial, samples, baseline, context))
        trial = judge_trial(trial, context.bounds)
        stays_open = baseline is None and not any(fidelity.nonfinite for fidelity in trial.fidelity.values())
        if stays_open:
            return trial, BaselineRun(process, outputs, samples)
    except CandidateError as failure:
        trial = replace(trial, status="failed", reason=str(failure), peak_bytes=process.observed_peak or None)
    except ValueError as error:
        trial = replace(trial, status="failed", reason=str(error), peak_bytes=process.observed_peak or None)
    finally:
        if not stays_open:
            process.kill()
    return trial, None


def restore_baseline(candidate: Candidate, context: EvaluationContext) -> BaselineRun | None:
    """Reopen and return the baseline of an earlier run, with its stored outputs and pictures.

    The result is None where the outputs or the pictures are missing.
    """
    folder = context.folder / candidate.key
    if not (folder / OUTPUTS_FILE).is_file() or (context.requests and not (folder / PICTURES_FILE).is_file()):
        return None
    samples = read_candidate_samples(folder) if context.requests else None
    try:
        return BaselineRun(_reopen(context.make_task(candidate), context), read_probes(folder / OUTPUTS_FILE), samples)
    except CandidateError:
        return None


def reopen_baseline(baseline: BaselineRun, context: EvaluationContext) -> None:
    """Restart the baseline's process after it died.

    Raises:
        CandidateError: the baseline cannot be opened.
    """
    baseline.process = _reopen(baseline.process.task, context)


def _reopen(
    task: CandidateTask, context: EvaluationContext, other_processes: Sequence[CandidateProcess] = ()
) -> CandidateProcess:
    """Return a process with the task's component open. The graph must have been built before."""
    process = CandidateProcess(task, context.memory_limit, other_processes)
    try:
        process.start()
        process.call(Build(), timeout=context.timeout)
        process.call(Open(), timeout=context.timeout)
    except CandidateError:
        process.kill()
        raise
    return process


def build_artifact(candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None = None) -> None:
    """Build the candidate's graph in a process of its own, if its recipe builds one and it does not exist.

    The baseline releases its memory while a large graph is built.

    Raises:
        CandidateError: building failed.
    """
    if not candidate.makes_graph or (context.artifacts / candidate.artifact_key).is_dir():
        return
    if baseline and graph_bytes(context.graph) > PARALLEL_BUILD_BYTES:
        baseline.process.call(Release(), timeout=context.timeout)
    with CandidateProcess(context.make_task(candidate), context.memory_limit, _baseline_processes(baseline)) as builder:
        builder.call(Build(), timeout=context.timeout)


def prebuild_artifacts(candidates: Sequence[Candidate], context: EvaluationContext, cores: int) -> None:
    """Build the graphs of all candidates in parallel, before anything is timed.

    Failures are ignored: the candidate's evaluation repeats and reports them. Graphs above PARALLEL_BUILD_BYTES, of
    which two may not fit into memory, are left to the evaluation.
    """
    if cores < 2 or graph_bytes(context.graph) > PARALLEL_BUILD_BYTES:
        return
    shared = replace(context, memory_limit=None if context.memory_limit is None else context.memory_limit // cores)

    def try_build(candidate: Candidate) -> None:
        with contextlib.suppress(CandidateError):
            build_artifact(candidate, shared)

    candidates_by_artifact = {candidate.artifact_key: candidate for candidate in candidates if candidate.makes_graph}
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(try_build, candidates_by_artifact.values()))


def _baseline_processes(baseline: BaselineRun | None) -> tuple[CandidateProcess, ...]:
    return (baseline.process,) if baseline else ()


def _open_and_run(trial: Trial, process: CandidateProcess, context: EvaluationContext) -> Trial:
    built = process.call(Build(), timeout=context.timeout)
    opened = process.call(Open(), timeout=context.timeout)
    process.call(RunProbes(), timeout=context.timeout)
    gpu_bytes = process.call(GpuMemory(), timeout=context.timeout) if trial.candidate.is_on_gpu else None
    graph = Path(built.graph)
    is_built = graph != context.graph
    return replace(
        trial,
        executed=opened.executed,
        census=opened.census,
        build_seconds=built.seconds if is_built else None,
        open_seconds=opened.seconds,
        first_seconds=opened.first_seconds,
        peak_bytes=process.peak_bytes,
        gpu_bytes=gpu_bytes,
        file_bytes=graph_bytes(graph),
        graph=relative_path(graph, context.root),
        artifact=relative_path(graph.parent, context.root) if is_built else None,
    )


def graph_bytes(graph: Path) -> int:
    """Return the size in bytes of a graph and its external weights."""
    external = read_signature(graph).external
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in external)


def _measure_latency(
    trial: Trial, process: CandidateProcess, baseline: BaselineRun | None, context: EvaluationContext
) -> Trial:
    timer = process_timer(process, context.timeout)
    comparison = compare_latency(
        process_timer(baseline.process, context.timeout) if baseline else timer, timer, context.timing_budget
    )
    ratio = comparison.ratio
    if baseline is None:  # the baseline's ratio to itself is 1; its interval shows the machine's noise
        ratio = Ratio(1.0, ratio.low / ratio.value, ratio.high / ratio.value)
    batch = {str(context.rows): comparison.candidate.median / context.rows}
    trial = replace(trial, seconds=comparison.candidate, ratio=ratio, rows=context.rows, batch=batch)
    if context.measure_batches and (
        baseline is None or may_win_at_larger_batch(trial, context.timing_budget.early_stop_ratio)
    ):
        batch = measure_batch_curve(
            trial, lambda rows, calls: process.call(TimeBatch(rows, calls), timeout=context.timeout)
        )
    return replace(trial, batch=batch)


def _check_large_batch(
    trial: Trial, process: CandidateProcess, outputs: Sequence[Probe], context: EvaluationContext
) -> Trial:
    """Return the trial with the fidelity at the largest timed batch, where backends may select other kernels.

    A failure of the batch leaves the trial unchanged.
    """
    rows = _largest_batch(trial, context)
    has_batch_axis = all(array.shape[:1] == (context.rows,) for array in outputs[0].feeds.values())
    if rows <= context.rows or not has_batch_axis or find_violation(trial, context.bounds):
        return trial
    try:
        process.call(RunLargeBatch(rows), timeout=context.timeout)
    except CandidateError:
        return trial
    expected = gather_rows(outputs, interleave_rows(read_probes(context.probes), rows))
    fidelity = compare_probes([expected], read_probes(process.folder / LARGE_BATCH_FILE))
    return replace(trial, fidelity={**trial.fidelity, **fidelity})


def _largest_batch(trial: Trial, context: EvaluationContext) -> int:
    """Return the largest batch size that was timed.

    Where only the probes' own batch size was timed and opening is quick, return the largest size of CPU_BATCH_SIZES.
    """
    timed = max(map(int, trial.batch), default=0)
    return CPU_BATCH_SIZES[-1] if context.measure_batches and timed == context.rows and opens_quickly(trial) else timed


def process_timer(process: CandidateProcess, timeout: float) -> Callable[[int], float]:
    """Return a Timer that runs calls in a candidate's process."""
    return lambda calls: process.call(TimeCalls(calls), timeout=timeout)


def _generate_samples(process: CandidateProcess, context: EvaluationContext) -> CandidateSamples:
    process.call(Generate(tuple(context.requests)), timeout=context.timeout)
    return read_candidate_samples(process.folder)


def request_to_json(request: ImageRequest) -> dict[str, Any]:
    """Return a request as a JSON object without its None fields."""
    return {name: value for name, value in asdict(request).items() if value is not None}


def _compare_samples(
    trial: Trial, samples: CandidateSamples, baseline: BaselineRun | None, context: EvaluationContext
) -> Any:
    reference = baseline.samples if baseline and baseline.samples else samples
    files = write_sample_images(context.folder / trial.candidate.key, samples, context.root)
    return compare_pictures(reference.pictures, samples.pictures, (reference.latents, samples.latents), files=files)


def _write_reproduce_script(folder: Path, root: Path) -> str:
    """Write a script that runs the candidate again; return its path relative to `root`."""
    path = folder / REPRODUCE_FILE
    path.write_text(
        '"""Build, open, run and time this candidate again: `python reproduce.py`."""\n\n'
        "from pathlib import Path\n\n"
        "from stillhouse.accelerate.evaluation.reproduce import reproduce\n\n"
        f'reproduce(Path(__file__).parent / "{TASK_FILE}")\n',
        encoding="utf-8",
    )
    return relative_path(path, root)
