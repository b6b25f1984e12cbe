"""Evaluation of a candidate (backend, precision, options of a network) in a process of its own.

The process builds and opens the network, runs it on recorded inputs, is timed, and generates pictures. Outputs and
pictures are compared with those of the f32 baseline.
"""

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
"""Maximum size in bytes of a graph with its weights at which several graphs are built at the same time."""
REPRODUCE_FILE = "reproduce.py"
ARTIFACTS_FOLDER = "artifacts"
"""Name of the folder of built (quantized) graphs, next to the folders of a network's measurements."""


@dataclass(slots=True)
class EvaluationContext:
    """Inputs and limits that the evaluations of all candidates of one network share.

    Args:
        folder: directory in which each candidate gets a folder for its measurements.
        root: working directory of `stillhouse accelerate`; paths in the report are relative to it.
        graph: path of the network's original graph.
        probes: file of the recorded inputs.
        bounds: limits on accuracy and memory that an accepted candidate satisfies.
        rows: batch size of the recorded inputs.
        pipeline: directory of the pipeline that generates pictures; None for a single ONNX file.
        components: all networks of the pipeline by name.
        requests: requests of the pictures to compare; empty: no pictures are generated.
        threads: maximum number of threads; None: the backend's default.
        memory_limit: bytes that the candidate's and the baseline's process may use together; None: no limit.
        timeout: seconds that one command to a process may take.
        timing_budget: limits on rounds and seconds of the latency comparison.
        measure_batches: whether to measure seconds per row at several batch sizes.
        artifacts: folder of built graphs; default: `ARTIFACTS_FOLDER` in `folder`.
        defaults: the pipeline's original default settings; None for a single ONNX file.
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
        """Return the task for the process that measures a candidate: the candidate, its graph, inputs and folders."""
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
    """The f32 baseline, open for comparison with candidates.

    Args:
        process: process in which the network is open.
        outputs: outputs for each recorded input, in order.
        samples: pictures generated with the baseline; None where no pictures are compared.
    """

    process: CandidateProcess
    outputs: Sequence[Probe]
    samples: CandidateSamples | None = None


def evaluate(
    candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None
) -> tuple[Trial, BaselineRun | None]:
    """Measure a candidate in a process of its own, compare it with the baseline, and judge it.

    Without `baseline` the candidate becomes the baseline, and its process stays open. Later candidates
    are compared with this baseline even if the baseline violates a bound, such as the memory bound.

    Args:
        candidate: candidate to measure.
        context: inputs and limits.
        baseline: open baseline to compare with; None: the candidate becomes the baseline.

    Returns:
        the trial (measurements and verdict, "failed" after an error), and the new open baseline. The latter is None if
        the candidate did not become the baseline.
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
        # The check of a large batch may have crashed the process. The process is then started again, because later
        # checks use smaller batches.
        if not process.is_alive:
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
    """Open the baseline of an earlier run again, and return it with its stored outputs and pictures.

    The result is None where outputs or pictures are missing, or where the baseline cannot be opened.

    Args:
        candidate: the candidate that was the baseline.
        context: inputs and limits.
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
    """Start a new process for a baseline whose process has died, and open its network in it.

    Raises:
        CandidateError: the network cannot be opened.
    """
    baseline.process = _reopen(baseline.process.task, context)


def _reopen(
    task: CandidateTask, context: EvaluationContext, other_processes: Sequence[CandidateProcess] = ()
) -> CandidateProcess:
    """Start a process, open the network of a task (a candidate and its inputs) in it, and return the process.

    Raise CandidateError, and kill the process, if the network cannot be opened.

    Args:
        context: time and memory limits.
        other_processes: processes whose memory counts towards the limit.
    """
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
    """Build a candidate's graph, for example by quantization, in a process of its own.

    Nothing is done if the candidate uses an existing graph, or if its graph was built before.

    Args:
        candidate: names the backend and the way to build the graph.
        context: inputs and limits.
        baseline: the open baseline; its network is closed first if the graph is large, to release memory.

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
    """Build the graphs of several candidates, `cores` of them at the same time, before anything is timed.

    A failure is ignored here, because `evaluate` builds the graph again and reports the failure. Nothing is built on a
    single core, or where the graph is larger than PARALLEL_BUILD_BYTES: two large graphs may not fit into memory.

    Args:
        context: inputs and limits; the memory limit is divided among the processes.
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
    """Return the size in bytes of an ONNX graph's file and the files of its external weights."""
    external = read_signature(graph).external
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in external)


def _measure_latency(
    trial: Trial, process: CandidateProcess, baseline: BaselineRun | None, context: EvaluationContext
) -> Trial:
    timer = process_timer(process, context.timeout)
    baseline_timer = process_timer(baseline.process, context.timeout) if baseline else timer
    comparison = compare_latency(baseline_timer, timer, context.timing_budget)
    ratio = comparison.ratio
    # If `baseline` is None, this trial is itself the baseline and was timed against itself: its speed-up is 1 by
    # definition, and the interval around 1 shows the noise of the machine.
    if baseline is None:
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
    """Run a candidate at the largest timed batch size, and add the fidelity of its outputs to its measurements.

    The check is needed because a backend may select other kernels for a large batch. The trial is returned unchanged if
    the batch fails, if no larger batch was timed, or if a bound is violated already. The candidate is open in
    `process`. `outputs` are the baseline's outputs for each recorded input.
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
    """Return the largest batch size at which a candidate was timed.

    If only the batch size of the recorded inputs was timed, and opening the network is quick, the result is the largest
    size of CPU_BATCH_SIZES.
    """
    timed = max(map(int, trial.batch), default=0)
    return CPU_BATCH_SIZES[-1] if context.measure_batches and timed == context.rows and opens_quickly(trial) else timed


def process_timer(process: CandidateProcess, timeout: float) -> Callable[[int], float]:
    """Return a function that runs a number of calls of a network in another process, and returns their total seconds.

    Args:
        process: process in which the network is open.
        timeout: maximum seconds of these calls together.
    """
    return lambda calls: process.call(TimeCalls(calls), timeout=timeout)


def _generate_samples(process: CandidateProcess, context: EvaluationContext) -> CandidateSamples:
    process.call(Generate(tuple(context.requests)), timeout=context.timeout)
    return read_candidate_samples(process.folder)


def request_to_json(request: ImageRequest) -> dict[str, Any]:
    """Return the fields of an image request that are not None, by name, as values that JSON can hold."""
    return {name: value for name, value in asdict(request).items() if value is not None}


def _compare_samples(
    trial: Trial, samples: CandidateSamples, baseline: BaselineRun | None, context: EvaluationContext
) -> Any:
    reference = baseline.samples if baseline and baseline.samples else samples
    files = write_sample_images(context.folder / trial.candidate.key, samples, context.root)
    return compare_pictures(reference.pictures, samples.pictures, (reference.latents, samples.latents), files=files)


def _write_reproduce_script(folder: Path, root: Path) -> str:
    """Write a Python script that measures a candidate again, and return its path relative to `root`.

    Args:
        folder: folder of the candidate's measurements, in which the script is written beside the task file.
        root: working directory of `stillhouse accelerate`.
    """
    path = folder / REPRODUCE_FILE
    path.write_text(
        '"""Build, open, run and time this candidate again: `python reproduce.py`."""\n\n'
        "from pathlib import Path\n\n"
        "from stillhouse.accelerate.evaluation.reproduce import reproduce\n\n"
        f'reproduce(Path(__file__).parent / "{TASK_FILE}")\n',
        encoding="utf-8",
    )
    return relative_path(path, root)
