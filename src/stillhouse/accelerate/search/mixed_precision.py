"""Mixed precision: quantize a network again with some blocks left in float, because quantizing all was too inaccurate.

The search looks for a minimal set of blocks to keep in float with which the network is accurate enough.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stillhouse.accelerate.calibration.calibration_data import LARGE_BATCH_LABEL, read_probes
from stillhouse.accelerate.evaluation.accuracy import find_violation
from stillhouse.accelerate.evaluation.candidate_messages import Build, Open, RunProbes
from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.evaluate import evaluate
from stillhouse.accelerate.evaluation.measure import build_artifact
from stillhouse.accelerate.evaluation.output_fidelity import compare_outputs
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.errors import StillhouseError

_SQNR_MARGIN = 5.0
"""dB by which blocks kept in float must improve the SQNR of a candidate's outputs, where the outputs satisfied their
bound, but the pictures did not. The search compares outputs only, because generating pictures in each of its steps
would take too long."""


def search_mixed_precision(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, seconds_left: Callable[[], float]
) -> Iterator[Trial]:
    """Measure inaccurate quantized candidates again with some blocks of the network kept in float.

    A quantized candidate is measured again if it was rejected as inaccurate and may be faster than the best accepted
    candidate. Only one candidate of each recipe (kind of quantization) is measured again.

    Args:
        trials: measurements of all candidates of the network.
        context: inputs and limits of the evaluation.
        baseline: the open f32 baseline that candidates are compared with.
        seconds_left: returns the seconds left for measuring this network.

    Yields:
        the measurements of each new candidate; where no set of blocks is accurate enough, the rejected candidate's
        earlier measurements, with this failure added to the reason.
    """
    best = best_trial(trials, "latency")
    fastest = best.ratio.value if best and best.ratio else 1.0
    searched_recipes = {trial.candidate.recipe for trial in trials if trial.candidate.keep}
    for trial in sorted(trials, key=lambda trial: -(trial.ratio.value if trial.ratio else 0.0)):
        candidate = trial.candidate
        is_fast = trial.status == "rejected" and trial.ratio is not None and trial.ratio.high > fastest
        if (
            is_fast
            and _failed_for_precision(trial, context)
            and candidate.recipe not in searched_recipes
            and seconds_left() > 0
        ):
            searched_recipes.add(candidate.recipe)
            try:
                keep = _find_nodes_to_keep(candidate, trial, context, baseline, seconds_left)
            except (TimeoutError, StillhouseError, CandidateError) as failure:
                cause = str(failure) or "the time budget ended first"
                yield replace(trial, reason=f"{trial.reason}; mixed precision found no solution: {cause}")
            else:
                yield evaluate(replace(candidate, keep=tuple(sorted(keep))), context, baseline)


def _failed_for_precision(trial: Trial, context: EvaluationContext) -> bool:
    """Return whether quantization made a rejected candidate inaccurate, so that keeping blocks in float may help.

    Errors that occur only at a large batch do not count, because the backend's kernels for this batch cause them.
    """
    is_quantized = trial.candidate.makes_graph and not trial.candidate.is_batch_dependent
    fidelity = {label: value for label, value in trial.fidelity.items() if LARGE_BATCH_LABEL not in label}
    return is_quantized and bool(
        find_violation(replace(trial, fidelity=fidelity), replace(context.bounds, max_memory=None))
    )


def _find_nodes_to_keep(
    candidate: Candidate,
    trial: Trial,
    context: EvaluationContext,
    baseline: BaselineRun,
    seconds_left: Callable[[], float],
) -> list[str]:
    """Return the names of the nodes to keep in float, so that a quantized candidate becomes accurate enough.

    Args:
        candidate: the inaccurate candidate.
        trial: measurements of the inaccurate candidate.
        context: inputs and limits of the evaluation.
        baseline: the open f32 baseline.
        seconds_left: returns the seconds left for the search.

    Raises:
        StillhouseError: no set of blocks is accurate enough, or the graph cannot be split into blocks.
        TimeoutError: the time budget ended.
        CandidateError: a graph could not be built or run.
    """
    from stillhouse.backends.graph_blocks import list_blocks, minimal_exact_blocks

    blocks = list_blocks(context.graph)
    nodes = {block.name: block.nodes for block in blocks}
    bound = context.bounds.min_sqnr or 0.0
    if trial.worst_fidelity and trial.worst_fidelity.sqnr >= bound:
        bound = trial.worst_fidelity.sqnr + _SQNR_MARGIN

    def passes(block_names: frozenset[str]) -> bool:
        if seconds_left() <= 0:
            raise TimeoutError
        variant = replace(candidate, keep=tuple(sorted(node for name in block_names for node in nodes[name])))
        return _measure_sqnr(variant, context, baseline) >= bound

    return [node for name in minimal_exact_blocks(blocks, passes) for node in nodes[name]]


def _measure_sqnr(candidate: Candidate, context: EvaluationContext, baseline: BaselineRun) -> float:
    build_artifact(candidate, context, baseline)
    with CandidateProcess(context.make_task(candidate), context.memory_limit, (baseline.process,)) as process:
        process.call(Build(), timeout=context.timeout)
        process.call(Open(), timeout=context.timeout)
        process.call(RunProbes(), timeout=context.timeout)
        compared = compare_outputs(baseline.outputs, read_probes(process.folder / OUTPUTS_FILE), baseline.kinds)
    shutil.rmtree(process.folder)
    trial = Trial(candidate, "accepted", fidelity=compared.fidelity, unproven=compared.unproven)
    violation = find_violation(trial, replace(context.bounds, min_sqnr=None))
    return float("-inf") if violation or trial.worst_fidelity is None else trial.worst_fidelity.sqnr
