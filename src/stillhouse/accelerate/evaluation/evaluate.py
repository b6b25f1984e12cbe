"""Evaluation of a candidate (backend, precision, options of a network) in a process of its own.

The process builds and opens the network, runs it on the probes, is timed, and generates pictures. Outputs and pictures
are compared with those of the baseline.
"""

from dataclasses import replace

from stillhouse.accelerate.calibration.calibration_data import gather_rows, interleave_rows, read_probes
from stillhouse.accelerate.evaluation.accuracy import find_violation, is_visually_exact, judge_trial
from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES, opens_quickly
from stillhouse.accelerate.evaluation.candidate_messages import RunFeeds, RunLargeBatch
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import LARGE_BATCH_FILE, OUTPUTS_FILE
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.measure import (
    baseline_processes,
    build_artifact,
    compare_samples,
    generate_samples,
    measure_latency,
    open_and_run,
    revive,
    write_reproduce_script,
)
from stillhouse.accelerate.evaluation.output_fidelity import OutputMismatch, check_rows, compare_outputs
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import relative_path
from stillhouse.accelerate.records.trial import Trial

_OTHER_OUTPUTS_FILE = "other_outputs.npz"


def evaluate(candidate: Candidate, context: EvaluationContext, baseline: BaselineRun) -> Trial:
    """Measure a candidate in a process of its own, compare it with the baseline, and judge it.

    Args:
        candidate: candidate to measure.
        context: inputs and limits.
        baseline: open baseline to compare with.

    Returns:
        the trial: measurements and verdict; "failed" after an error.
    """
    process = CandidateProcess(context.make_task(candidate), context.memory_limit, baseline_processes(baseline))
    trial = Trial(candidate, "failed", log=relative_path(process.folder / LOG_FILE, context.root))
    try:
        build_artifact(candidate, context, baseline)
        process.start()
        trial = replace(trial, reproduce=write_reproduce_script(process.folder, context.root))
        trial = _compare_probes(open_and_run(trial, process, context), process, baseline)
        if not trial.mismatch:
            trial = measure_latency(trial, process, baseline.process, context, baseline.has_independent_rows)
        for check in (_check_large_batch, _check_other_inputs):
            trial = trial if trial.mismatch else check(trial, process, baseline, context)
            process = revive(process, context, baseline_processes(baseline))
        if baseline.samples and not (find_violation(trial, context.bounds) or is_visually_exact(trial)):
            samples = generate_samples(process, context)
            trial = replace(trial, pictures=compare_samples(trial, samples, baseline.samples, context))
        return judge_trial(trial, context.bounds)
    except CandidateError as failure:
        return replace(trial, status="failed", reason=str(failure), peak_bytes=process.observed_peak or None)
    finally:
        process.kill()


def _compare_probes(trial: Trial, process: CandidateProcess, baseline: BaselineRun) -> Trial:
    """Compare a candidate's outputs for the probes with the baseline's, and return the trial with their fidelity."""
    try:
        compared = compare_outputs(baseline.outputs, read_probes(process.folder / OUTPUTS_FILE), baseline.kinds)
    except OutputMismatch as error:
        return replace(trial, mismatch=str(error))
    return replace(trial, fidelity=compared.fidelity, unproven=compared.unproven)


def _check_large_batch(
    trial: Trial, process: CandidateProcess, baseline: BaselineRun, context: EvaluationContext
) -> Trial:
    """Run a candidate at the largest timed batch size, and add the fidelity of its outputs to its measurements.

    The check is needed because a backend may select other kernels for a large batch. The trial is returned unchanged if
    the batch fails, if no larger batch was timed, or if a bound is violated already. Without independent rows there is
    no batch. The candidate is open in `process`.
    """
    rows = _largest_batch(trial, context) if baseline.has_independent_rows else 0
    if rows <= context.rows or find_violation(trial, context.bounds):
        return trial
    try:
        process.call(RunLargeBatch(rows), timeout=context.timeout)
    except CandidateError:
        return trial
    places = interleave_rows(read_probes(context.probes), rows)
    batch = read_probes(process.folder / LARGE_BATCH_FILE)
    try:
        compared = compare_outputs([gather_rows(baseline.outputs, places)], batch, baseline.kinds)
        check_rows(gather_rows(read_probes(process.folder / OUTPUTS_FILE), places), batch[0])
    except OutputMismatch as error:
        return replace(trial, mismatch=str(error))
    return replace(trial, fidelity={**trial.fidelity, **compared.fidelity})


def _check_other_inputs(
    trial: Trial, process: CandidateProcess, baseline: BaselineRun, context: EvaluationContext
) -> Trial:
    """Run a candidate on the inputs of other shapes and branches that the baseline runs on, and add their fidelity.

    The trial is returned unchanged if a bound is violated already, and where another shape would need another long
    compilation. The candidate is open in `process`.
    """
    fidelity = dict(trial.fidelity)
    if find_violation(trial, context.bounds) or not opens_quickly(trial):
        return trial
    for path, expected in baseline.other_outputs.items():
        outputs = process.folder / _OTHER_OUTPUTS_FILE
        try:
            process.call(RunFeeds(str(path), str(outputs)), timeout=context.timeout)
            # Inputs of other shapes are joined pieces, between which a classifier hesitates; SQNR is enough for scores.
            fidelity |= compare_outputs(expected, read_probes(outputs), baseline.kinds, judge_scores=False).fidelity
        except CandidateError as failure:
            sentence = f"it does not run with {expected[0].label}, which the file allows: {failure}"
            return replace(trial, mismatch=sentence)
        except OutputMismatch as error:
            return replace(trial, mismatch=str(error))
        outputs.unlink()
    return replace(trial, fidelity=fidelity)


def _largest_batch(trial: Trial, context: EvaluationContext) -> int:
    """Return the largest batch size at which a candidate was timed.

    If only the batch size of the probes was timed, and opening the network is quick, the result is the largest size of
    CPU_BATCH_SIZES.
    """
    timed = max(map(int, trial.batch), default=0)
    return CPU_BATCH_SIZES[-1] if context.measure_batches and timed == context.rows and opens_quickly(trial) else timed
