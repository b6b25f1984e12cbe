"""Steps of an evaluation: build, open, run and time a candidate's network, and generate pictures with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stillhouse.accelerate.evaluation.accuracy import compare_pictures
from stillhouse.accelerate.evaluation.batch_scaling import may_win_at_larger_batch, measure_batch_curve
from stillhouse.accelerate.evaluation.candidate_messages import (
    Build,
    Generate,
    GpuMemory,
    Open,
    Release,
    RunProbes,
    TimeBatch,
    TimeCalls,
)
from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.latency import LONG_CALL_SECONDS, compare_latency
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples, read_candidate_samples, write_sample_images
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import relative_path
from stillhouse.accelerate.records.trial import PictureFidelity, Trial
from stillhouse.backends.signature import graph_bytes, is_large, read_signature
from stillhouse.measure.clock import Ratio

_SELF_ROUNDS = 2
"""Number of rounds in which a baseline whose calls are long is timed against itself, twice in each."""
REPRODUCE_FILE = "reproduce.py"


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
    if baseline:
        release_large(baseline.process, context)
    with CandidateProcess(context.make_task(candidate), context.memory_limit, baseline_processes(baseline)) as builder:
        builder.call(Build(), timeout=context.timeout)


def release_large(process: CandidateProcess, context: EvaluationContext) -> None:
    """Close the networks of a process, so that others can use their memory, if the graph of the network is large.

    The next command that needs them opens them again.
    """
    if is_large(context.graph, read_signature(context.graph)):
        process.call(Release(), timeout=context.timeout)


def reopen(
    task: CandidateTask, context: EvaluationContext, other_processes: Sequence[CandidateProcess] = ()
) -> CandidateProcess:
    """Start a process, open the network of a task (a candidate and its inputs) in it, and return the process.

    Args:
        context: time and memory limits.
        other_processes: processes whose memory counts towards the limit.

    Raises:
        CandidateError: the network cannot be opened; the process is killed.
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


def revive(
    process: CandidateProcess, context: EvaluationContext, other_processes: Sequence[CandidateProcess] = ()
) -> CandidateProcess:
    """Return the process if it is alive, else a new process with the same network.

    A large batch may crash a process; what is measured afterwards needs smaller batches only.

    Args:
        process: process in which the network was opened.
        context: time and memory limits.
        other_processes: processes whose memory counts towards the limit.

    Raises:
        CandidateError: the network cannot be opened again.
    """
    if process.is_alive:
        return process
    process.kill()
    return reopen(process.task, context, other_processes)


def baseline_processes(baseline: BaselineRun | None) -> tuple[CandidateProcess, ...]:
    """Return the process of the open baseline, whose memory counts towards the limit; empty without a baseline."""
    return (baseline.process,) if baseline else ()


def open_and_run(trial: Trial, process: CandidateProcess, context: EvaluationContext) -> Trial:
    """Open a candidate's network, run it on every probe, and return its trial with sizes and durations of opening.

    The outputs are written to `OUTPUTS_FILE` in the candidate's folder.

    Raises:
        CandidateError: building, opening or running failed.
    """
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
        weight_types=opened.weight_types,
        build_seconds=built.seconds if is_built else None,
        open_seconds=opened.seconds,
        first_seconds=opened.first_seconds,
        peak_bytes=process.peak_bytes,
        gpu_bytes=gpu_bytes,
        file_bytes=graph_bytes(graph, read_signature(graph)),
        graph=relative_path(graph, context.root),
        artifact=relative_path(graph.parent, context.root) if is_built else None,
    )


def measure_latency(
    trial: Trial,
    process: CandidateProcess,
    baseline: CandidateProcess,
    context: EvaluationContext,
    has_independent_rows: bool,
) -> Trial:
    """Time an open candidate and the baseline in the same rounds, and return the candidate's trial with its speed-up.

    A baseline that is timed against itself has the speed-up 1 by definition; the interval around 1 shows the noise of
    the machine. Where the first axis is a batch, the candidate may also be timed at several batch sizes.

    Args:
        trial: the candidate's measurements so far.
        process: process in which the candidate is open.
        baseline: process in which the baseline is open; the same process for the baseline itself.
        context: inputs and limits.
        has_independent_rows: whether the first axis of the inputs is a batch.
    """
    budget = context.timing_budget
    if baseline is process and (trial.first_seconds or 0.0) > LONG_CALL_SECONDS:
        budget = replace(budget, min_rounds=_SELF_ROUNDS, max_rounds=_SELF_ROUNDS)
    comparison = compare_latency(
        process_timer(baseline, context.timeout), process_timer(process, context.timeout), budget
    )
    ratio, rows = comparison.ratio, context.rows if has_independent_rows else 1
    if baseline is process:
        ratio = Ratio(1.0, min(1.0, ratio.low / ratio.value), max(1.0, ratio.high / ratio.value))
    batch = {str(rows): comparison.candidate.median / rows}
    trial = replace(
        trial,
        seconds=comparison.candidate,
        baseline_seconds=comparison.baseline,
        ratio=ratio,
        rows=rows,
        batch=batch,
    )
    measures_batches = context.measure_batches and has_independent_rows
    if measures_batches and (
        baseline is process or may_win_at_larger_batch(trial, context.timing_budget.early_stop_ratio)
    ):
        batch = measure_batch_curve(
            trial, lambda rows, calls: process.call(TimeBatch(rows, calls), timeout=context.timeout)
        )
    return replace(trial, batch=batch)


def process_timer(process: CandidateProcess, timeout: float) -> Callable[[int], float]:
    """Return a function that runs a number of calls of a network in another process, and returns their total seconds.

    Args:
        process: process in which the network is open.
        timeout: maximum seconds of these calls together.
    """
    return lambda calls: process.call(TimeCalls(calls), timeout=timeout)


def generate_samples(process: CandidateProcess, context: EvaluationContext) -> CandidateSamples:
    """Generate a picture for every request of the context with an open candidate, and return the pictures."""
    process.call(Generate(tuple(context.requests)), timeout=context.timeout)
    return read_candidate_samples(process.folder)


def compare_samples(
    trial: Trial, samples: CandidateSamples, reference: CandidateSamples, context: EvaluationContext
) -> PictureFidelity:
    """Return the difference of a candidate's pictures from those of the baseline, and write the pictures as files."""
    files = write_sample_images(context.folder / trial.candidate.key, samples, context.root)
    return compare_pictures(reference.pictures, samples.pictures, (reference.latents, samples.latents), files=files)


def write_reproduce_script(folder: Path, root: Path) -> str:
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
