"""The baseline: the model as given, opened by onnxruntime without changes, with which all candidates are compared."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillhouse.accelerate.calibration.calibration_data import (
    Feeds,
    Probe,
    gather_rows,
    interleave_rows,
    read_probes,
    write_probes,
)
from stillhouse.accelerate.evaluation.accuracy import judge_trial
from stillhouse.accelerate.evaluation.candidate_messages import RunFeeds
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.latency import LONG_CALL_SECONDS
from stillhouse.accelerate.evaluation.measure import (
    compare_samples,
    generate_samples,
    measure_latency,
    open_and_run,
    release_large,
    reopen,
    revive,
    write_reproduce_script,
)
from stillhouse.accelerate.evaluation.output_fidelity import (
    MIN_EQUAL_SQNR,
    OutputKinds,
    compare_outputs,
    random_operators,
    read_output_kinds,
)
from stillhouse.accelerate.evaluation.sample_images import read_candidate_samples
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.measure.fidelity import compare_tensors

RANDOM = "its answers to the same inputs differ from call to call"
"""Beginning of the reason why nothing can be compared with a network that draws random numbers."""
_ROWS, _SLOW_ROWS = 4, 2
"""Number of rows that are run together and alone, to find out whether the first axis is a batch; of a slow network."""


def measure_baseline(candidate: Candidate, context: EvaluationContext) -> tuple[Trial, BaselineRun | None]:
    """Open a candidate as the baseline, and time it against itself.

    Args:
        candidate: the model as given, without changes.
        context: inputs and limits.

    Returns:
        the trial (measurements and verdict, "failed" after an error), and the open baseline. The latter is None after
        an error, and where an output is not finite. A baseline that violates a bound, such as the memory bound, stays
        open, because later candidates are compared with it.
    """
    process = CandidateProcess(context.make_task(candidate), context.memory_limit)
    trial = Trial(candidate, "failed", log=relative_path(process.folder / LOG_FILE, context.root))
    baseline = None
    try:
        process.start()
        trial = replace(trial, reproduce=write_reproduce_script(process.folder, context.root))
        trial = open_and_run(trial, process, context)
        opened = _describe_baseline(process, context, _is_slow(trial))
        process = opened.process
        compared = compare_outputs(opened.outputs, opened.outputs, opened.kinds)
        trial = replace(trial, fidelity=compared.fidelity)
        trial = measure_latency(trial, process, process, context, opened.has_independent_rows)
        process = opened.process = revive(process, context)
        if context.requests:
            opened.samples = generate_samples(process, context)
            release_large(process, context)
            trial = replace(trial, pictures=compare_samples(trial, opened.samples, opened.samples, context))
        trial = judge_trial(trial, context.bounds)
        baseline = None if any(fidelity.nonfinite for fidelity in trial.fidelity.values()) else opened
    except CandidateError as failure:
        trial = replace(trial, status="failed", reason=str(failure), peak_bytes=process.observed_peak or None)
    finally:
        if baseline is None:
            process.kill()
    return trial, baseline


def restore_baseline(earlier: Trial, context: EvaluationContext) -> BaselineRun | None:
    """Open the baseline of an earlier run again, and return it with its stored outputs and pictures.

    The result is None where outputs or pictures are missing, or where the baseline cannot be opened.

    Args:
        earlier: measurements of the baseline in the earlier run.
        context: inputs and limits.
    """
    candidate = earlier.candidate
    folder = context.folder / candidate.key
    if not (folder / OUTPUTS_FILE).is_file() or (context.requests and not (folder / PICTURES_FILE).is_file()):
        return None
    samples = read_candidate_samples(folder) if context.requests else None
    try:
        process = reopen(context.make_task(candidate), context)
        return replace(_describe_baseline(process, context, _is_slow(earlier)), samples=samples)
    except CandidateError:
        return None


def reopen_baseline(baseline: BaselineRun, context: EvaluationContext) -> None:
    """Start a new process for a baseline whose process has died, and open its network in it.

    Raises:
        CandidateError: the network cannot be opened.
    """
    baseline.process = reopen(baseline.process.task, context)


def unexcited_outputs(baseline: BaselineRun) -> tuple[str, ...]:
    """Return the names of the outputs that no probe excites: empty, constant, or far below their known range."""
    return compare_outputs(baseline.outputs, baseline.outputs, baseline.kinds).unproven


def nan_outputs(baseline: BaselineRun) -> dict[str, float]:
    """Return the share of elements that are NaN, over all probes, of each output with such elements."""
    shares = {
        name: float(np.mean(np.isnan(np.concatenate([probe.feeds[name].ravel() for probe in baseline.outputs]))))
        for name, array in baseline.outputs[0].feeds.items()
        if array.dtype.kind == "f" and array.size
    }
    return {name: share for name, share in shares.items() if share}


def unverified_branches(baseline: BaselineRun, context: EvaluationContext) -> list[str]:
    """Return a sentence about each branch of If in which candidates are not compared with the baseline."""
    refused = [path for path in context.other_inputs.branches if path not in baseline.other_outputs]
    labels = [read_probes(path)[0].label for path in refused]
    return [
        *context.other_inputs.untaken,
        *(
            f"candidates are not verified in the branch of If that is taken with {label}; give inputs that take it "
            "by --inputs"
            for label in labels
        ),
    ]


def _is_slow(trial: Trial) -> bool:
    """Return whether calls of the opened network are long."""
    return (trial.first_seconds or 0.0) > LONG_CALL_SECONDS


def _describe_baseline(process: CandidateProcess, context: EvaluationContext, is_slow: bool = False) -> BaselineRun:
    """Return an open baseline with what its outputs tell about the network: their kinds, rows, and other inputs.

    A slow network is not run on other inputs, because its candidates would not be, either; see `opens_quickly`.

    Raises:
        CandidateError: the network does not answer the same inputs as before.
    """
    outputs = read_probes(process.folder / OUTPUTS_FILE)
    _check_repeats(process, outputs[0], context)
    has_independent_rows = _has_independent_rows(process, context, is_slow)
    process = revive(process, context)  # a large batch may have ended it
    return BaselineRun(
        process,
        outputs,
        kinds=read_output_kinds(context.graph) if context.graph.suffix == ".onnx" else OutputKinds(),
        has_independent_rows=has_independent_rows,
        other_outputs={} if is_slow else _run_other_inputs(process, context),
    )


def _check_repeats(process: CandidateProcess, first: Probe, context: EvaluationContext) -> None:
    """Run the network on the first probe again. Raise CandidateError if the outputs are not those of `first`."""
    (again,) = _run(process, read_probes(context.probes)[:1], context)
    differing = [
        name
        for name, tensor in first.feeds.items()
        if tensor.shape != again.feeds[name].shape or compare_tensors(tensor, again.feeds[name]).sqnr < MIN_EQUAL_SQNR
    ]
    if differing:
        names = ", ".join(random_operators(context.graph)) if context.graph.suffix == ".onnx" else ""
        cause = f", because it draws random numbers by {names}" if names else ""
        raise CandidateError(
            f"{RANDOM}{cause}: the output {', '.join(differing)} of candidates cannot be compared with it; export the "
            "network with the random numbers as an input"
        )


def _has_independent_rows(process: CandidateProcess, context: EvaluationContext, is_slow: bool) -> bool:
    """Return whether the first axis of all inputs and outputs is a batch, whose rows do not influence each other.

    The network runs on each row alone, and on batches of them: two rows, all rows in both orders, and each row twice,
    because rows may be sorted or compared with one another. Of a slow network, only two rows run together. The result
    is False where an output differs, where an output does not have one part for each row, and where the network refuses
    two rows. Larger batches that it refuses prove nothing.
    """
    rows = _make_rows(read_probes(context.probes), _SLOW_ROWS if is_slow else _ROWS) if context.has_open_batch else []
    if not rows:
        return False
    order = list(range(len(rows)))
    larger = dict.fromkeys(map(tuple, (order[1::-1], order, order[::-1], [*order, *order])))
    larger.pop(tuple(order[:2]), None)
    try:
        alone = _run(process, rows, context)
        is_independent = _runs_rows_alone(process, rows, alone, order[:2], context)
    except CandidateError:
        return False
    with suppress(CandidateError):
        for batch in () if is_slow else larger:
            is_independent = is_independent and _runs_rows_alone(process, rows, alone, batch, context)
    return is_independent


def _runs_rows_alone(
    process: CandidateProcess,
    rows: Sequence[Probe],
    alone: Sequence[Probe],
    batch: Sequence[int],
    context: EvaluationContext,
) -> bool:
    """Return whether the network answers each row of a batch, given by numbers of rows, as it answers the row alone.

    Raises:
        CandidateError: the network refuses the batch.
    """
    (together,) = _run(process, [gather_rows(rows, [(row, 0) for row in batch])], context)
    return all(_is_row(together.feeds, place, len(batch), alone[row].feeds) for place, row in enumerate(batch))


def _make_rows(probes: Sequence[Probe], count: int) -> list[Probe]:
    """Return different rows of the probes, at most `count`, each as a batch of one; empty where an input has no axis.

    Where all rows are equal, the second row is the first with its values moved along the last axis.
    """
    if any(not array.ndim or not len(array) for array in probes[0].feeds.values()):
        return []
    rows: list[Feeds] = []
    for probe, row in interleave_rows(probes, count):
        candidate = {name: array[row : row + 1] for name, array in probes[probe].feeds.items()}
        if not any(all(np.array_equal(array, known[name]) for name, array in candidate.items()) for known in rows):
            rows.append(candidate)
    if len(rows) == 1:
        rows.append({name: np.roll(array, 1, axis=-1) for name, array in rows[0].items()})
    return [Probe(f"row {number}", row) for number, row in enumerate(rows)]


def _is_row(together: Feeds, place: int, rows: int, alone: Feeds) -> bool:
    """Return whether a row of the outputs for a batch of so many rows equals the outputs for this row alone."""
    return all(
        tensor.ndim > 0
        and len(tensor) == 1
        and together[name].shape == (rows, *tensor.shape[1:])
        and compare_tensors(tensor, together[name][place : place + 1]).sqnr >= MIN_EQUAL_SQNR
        for name, tensor in alone.items()
    )


def _run_other_inputs(process: CandidateProcess, context: EvaluationContext) -> dict[Path, Sequence[Probe]]:
    outputs: dict[Path, Sequence[Probe]] = {}
    for path in (*context.other_inputs.shapes, *context.other_inputs.branches):
        try:
            outputs[path] = _run(process, read_probes(path), context)
        except CandidateError:
            continue  # the file allows these inputs, but the network does not
    return outputs


def _run(process: CandidateProcess, feeds: Sequence[Probe], context: EvaluationContext) -> list[Probe]:
    inputs, outputs = process.folder / "feeds.npz", process.folder / "feeds_outputs.npz"
    write_probes(inputs, feeds)
    process.call(RunFeeds(str(inputs), str(outputs)), timeout=context.timeout)
    results = read_probes(outputs)
    inputs.unlink()
    outputs.unlink()
    return results
