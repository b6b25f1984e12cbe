"""One candidate from nothing to a trial: built, opened, checked, raced and drawn with, in a process of its own."""

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
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import LARGE_BATCH_FILE, OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.evaluation.latency import TimingBudget, compare_latency
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples, read_candidate_samples, write_sample_images
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask
from stillhouse.accelerate.records.candidate import GRAPH_RECIPES, Candidate
from stillhouse.accelerate.records.report import Bounds, relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.backends.signature import read_signature
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults

PARALLEL_BUILD_BYTES = 256 << 20
"""Bytes of a graph and its weights up to which several are quantised at a time."""
REPRODUCE_FILE = "reproduce.py"
ARTIFACTS_FOLDER = "artifacts"
"""The folder, beside those of the trials, of the graphs that recipes make."""


@dataclass(slots=True)
class EvaluationContext:
    """What every candidate of a component is run against.

    Args:
        folder: where trials of this component lie.
        made: where the graphs lie that recipes make; empty: in a folder of that one.
        root: the result's directory, to which paths in the report are relative.
        graph: the component's own graph.
        probes: a file of recorded inputs.
        rows: samples in one call of a probe.
        bounds: to keep.
        pipeline: directory in which pictures are drawn; None for a bare ONNX file.
        components: what the other components of the pipeline are, by name.
        defaults: of the pipeline before anything was chosen; None for a bare ONNX file.
        requests: of the pictures that are compared; none where pictures would take too long.
        memory: bytes that a child may take, and the baseline's process beside it.
        limit: seconds that a child may take for one answer.
        effort: of the race.
        batches: whether the network takes batches, and its curve is worth knowing.
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
        """The candidate's task."""
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
    """The baseline: its open process, what it answered to the probes, and the pictures it drew."""

    process: CandidateProcess
    outputs: Sequence[Probe]
    samples: CandidateSamples | None = None


def evaluate(
    candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None
) -> tuple[Trial, BaselineRun | None]:
    """Try a candidate. Without a reference it becomes the baseline itself, and its process stays open.

    A baseline may miss a bound, of memory for example: others are compared with it all the same.

    Returns:
        the trial, whatever happened, and the reference where the candidate became it.
    """
    subject = CandidateProcess(context.make_task(candidate), context.memory_limit, _baseline_processes(baseline))
    trial = Trial(candidate, "failed", log=relative_path(subject.folder / LOG_FILE, context.root))
    keeps = False
    try:
        build_artifact(candidate, context, baseline)
        subject.start()
        trial = replace(trial, reproduce=_write_reproduce_script(subject.folder, context.root))
        trial = _open_and_run(trial, subject, context)
        outputs = read_probes(subject.folder / OUTPUTS_FILE)
        wanted = baseline.outputs if baseline else outputs
        trial = replace(trial, fidelity=compare_probes(wanted, outputs))
        trial = _measure_latency(trial, subject, baseline, context)
        trial = _check_large_batch(trial, subject, wanted, context)
        if not subject.is_alive:  # a batch was too much for it, which says nothing of what is left to do
            subject.kill()
            subject = _reopen(subject.task, context, _baseline_processes(baseline))
        drawn = None
        if context.requests and (
            baseline is None or not (find_violation(trial, context.bounds) or is_visually_exact(trial))
        ):
            drawn = _generate_samples(subject, context)
            trial = replace(trial, pictures=_compare_samples(trial, drawn, baseline, context))
        trial = judge_trial(trial, context.bounds)
        keeps = baseline is None and not any(one.nonfinite for one in trial.fidelity.values())
        if keeps:
            return trial, BaselineRun(subject, outputs, drawn)
    except CandidateError as failure:
        trial = replace(trial, status="failed", reason=str(failure), peak_bytes=subject.observed_peak or None)
    except ValueError as error:
        trial = replace(trial, status="failed", reason=str(error), peak_bytes=subject.observed_peak or None)
    finally:
        if not keeps:
            subject.kill()
    return trial, None


def restore_baseline(candidate: Candidate, context: EvaluationContext) -> BaselineRun | None:
    """The baseline of an earlier run, open again, with what it answered and drew then; None where that is not there."""
    folder = context.folder / candidate.key
    if not (folder / OUTPUTS_FILE).is_file() or (context.requests and not (folder / PICTURES_FILE).is_file()):
        return None
    drawn = read_candidate_samples(folder) if context.requests else None
    try:
        return BaselineRun(_reopen(context.make_task(candidate), context), read_probes(folder / OUTPUTS_FILE), drawn)
    except CandidateError:
        return None


def reopen_baseline(baseline: BaselineRun, context: EvaluationContext) -> None:
    """Open the baseline's process again, which has died.

    Raises:
        SubjectFailed: it cannot be opened.
    """
    baseline.process = _reopen(baseline.process.task, context)


def _reopen(
    task: CandidateTask, context: EvaluationContext, other_processes: Sequence[CandidateProcess] = ()
) -> CandidateProcess:
    """A process with the task's network open, which was made before."""
    subject = CandidateProcess(task, context.memory_limit, other_processes)
    try:
        subject.start()
        subject.call("build", timeout=context.timeout)
        subject.call("open", timeout=context.timeout)
    except CandidateError:
        subject.kill()
        raise
    return subject


def build_artifact(candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None = None) -> None:
    """Make the candidate's graph, if it has one of its own and it is not there, in a process that ends with it.

    While a large one is made, the baseline gives its memory back.

    Raises:
        SubjectFailed: it could not be made.
    """
    if candidate.recipe not in GRAPH_RECIPES or (context.artifacts / candidate.artifact_key).is_dir():
        return
    if baseline and graph_bytes(context.graph) > PARALLEL_BUILD_BYTES:
        baseline.process.call("release", timeout=context.timeout)
    with CandidateProcess(context.make_task(candidate), context.memory_limit, _baseline_processes(baseline)) as maker:
        maker.call("build", timeout=context.timeout)


def prebuild_artifacts(candidates: Sequence[Candidate], context: EvaluationContext, cores: int) -> None:
    """Make the graphs of all candidates, several at a time, while nothing is timed. What fails is tried again, and
    reported, when its turn comes. Networks of which two may not fit into the memory are left to their turn."""
    if cores < 2 or graph_bytes(context.graph) > PARALLEL_BUILD_BYTES:
        return
    shared = replace(context, memory_limit=None if context.memory_limit is None else context.memory_limit // cores)

    def try_build(candidate: Candidate) -> None:
        with contextlib.suppress(CandidateError):
            build_artifact(candidate, shared)

    wanted = {one.artifact_key: one for one in candidates if one.recipe in GRAPH_RECIPES}
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(try_build, wanted.values()))


def _baseline_processes(baseline: BaselineRun | None) -> tuple[CandidateProcess, ...]:
    return (baseline.process,) if baseline else ()


def _open_and_run(trial: Trial, process: CandidateProcess, context: EvaluationContext) -> Trial:
    built = process.call("build", timeout=context.timeout)
    opened = process.call("open", timeout=context.timeout)
    process.call("run_probes", timeout=context.timeout)
    held = process.call("gpu_memory", timeout=context.timeout) if trial.candidate.is_on_gpu else None
    graph = Path(built["graph"])
    made = graph != context.graph
    return replace(
        trial,
        executed=opened["executed"],
        census=opened["census"],
        build_seconds=built["seconds"] if made else None,
        open_seconds=opened["seconds"],
        first_seconds=opened["first"],
        peak_bytes=process.peak_bytes,
        gpu_bytes=held,
        file_bytes=graph_bytes(graph),
        graph=relative_path(graph, context.root),
        artifact=relative_path(graph.parent, context.root) if made else None,
    )


def graph_bytes(graph: Path) -> int:
    """What must be on disk to open this graph: itself, and the files that its weights lie in."""
    external = read_signature(graph).external
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in external)


def _measure_latency(
    trial: Trial, process: CandidateProcess, baseline: BaselineRun | None, context: EvaluationContext
) -> Trial:
    lap = process_timer(process, context.timeout)
    outcome = compare_latency(
        process_timer(baseline.process, context.timeout) if baseline else lap, lap, context.timing_budget
    )
    ratio = outcome.ratio
    if baseline is None:  # against itself: 1 by definition, with the spread of this machine around it
        ratio = Ratio(1.0, ratio.low / ratio.value, ratio.high / ratio.value)
    batch = {str(context.rows): outcome.candidate.median / context.rows}
    trial = replace(trial, seconds=outcome.candidate, ratio=ratio, rows=context.rows, batch=batch)
    if context.measure_batches and (
        baseline is None or may_win_at_larger_batch(trial, context.timing_budget.early_stop_ratio)
    ):
        batch = measure_batch_curve(
            trial, lambda rows, calls: float(process.call("time_batch", rows, calls, timeout=context.timeout))
        )
    return replace(trial, batch=batch)


def _check_large_batch(
    trial: Trial, process: CandidateProcess, outputs: Sequence[Probe], context: EvaluationContext
) -> Trial:
    """With the fidelity of a server's batch: engines take other kernels for it than for a few rows.

    A batch that it cannot run ends its curve, and nothing else.
    """
    rows = _largest_batch(trial, context)
    is_by_rows = all(array.shape[:1] == (context.rows,) for array in outputs[0].feeds.values())
    if rows <= context.rows or not is_by_rows or find_violation(trial, context.bounds):
        return trial
    try:
        process.call("run_large_batch", rows, timeout=context.timeout)
    except CandidateError:
        return trial
    wanted = gather_rows(outputs, interleave_rows(read_probes(context.probes), rows))
    found = compare_probes([wanted], read_probes(process.folder / LARGE_BATCH_FILE))
    return replace(trial, fidelity={**trial.fidelity, **found})


def _largest_batch(trial: Trial, context: EvaluationContext) -> int:
    """The largest batch that was timed; where none was, a server's largest, if that is soon done."""
    timed = max(map(int, trial.batch), default=0)
    return CPU_BATCH_SIZES[-1] if context.measure_batches and timed == context.rows and opens_quickly(trial) else timed


def process_timer(process: CandidateProcess, timeout: float) -> Callable[[int], float]:
    """The subject as `race` takes it."""
    return lambda calls: float(process.call("time_calls", calls, timeout=timeout))


def _generate_samples(process: CandidateProcess, context: EvaluationContext) -> CandidateSamples:
    process.call("generate", [request_to_json(request) for request in context.requests], timeout=context.timeout)
    return read_candidate_samples(process.folder)


def request_to_json(request: ImageRequest) -> dict[str, Any]:
    """A request as JSON: only what it says."""
    return {name: value for name, value in asdict(request).items() if value is not None}


def _compare_samples(
    trial: Trial, samples: CandidateSamples, baseline: BaselineRun | None, context: EvaluationContext
) -> Any:
    base = baseline.samples if baseline and baseline.samples else samples
    files = write_sample_images(context.folder / trial.candidate.key, samples, context.root)
    return compare_pictures(base.pictures, samples.pictures, (base.latents, samples.latents), files=files)


def _write_reproduce_script(folder: Path, root: Path) -> str:
    """A script that runs the candidate again as it was run."""
    path = folder / REPRODUCE_FILE
    path.write_text(
        '"""Builds, opens, runs and times this candidate again: `python reproduce.py`."""\n\n'
        "from pathlib import Path\n\n"
        "from stillhouse.accelerate.evaluation.reproduce import reproduce\n\n"
        f'reproduce(Path(__file__).parent / "{TASK_FILE}")\n',
        encoding="utf-8",
    )
    return relative_path(path, root)
