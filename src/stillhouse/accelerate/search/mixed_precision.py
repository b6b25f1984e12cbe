"""What failed for its precision is tried again with as few blocks as possible kept as they are."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stillhouse.accelerate.calibration.calibration_data import LARGE_BATCH_LABEL, read_probes
from stillhouse.accelerate.evaluation.accuracy import compare_probes, find_violation
from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.evaluate import BaselineRun, EvaluationContext, build_artifact, evaluate
from stillhouse.accelerate.records.candidate import GRAPH_RECIPES, Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.errors import StillhouseError

_SQNR_MARGIN = 5.0
"""dB that a keep-list must gain over a missed picture bound, since only tensors are looked at on the way."""


def search_mixed_precision(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, seconds_left: Callable[[], float]
) -> Iterator[Trial]:
    """Trials with a keep-list, of those that were rejected for their precision and were fast enough to be worth it;
    where no keep-list is found, the rejected trial with what became of the search."""
    best = best_trial(trials, "latency")
    fastest = best.ratio.value if best and best.ratio else 1.0
    tried = {trial.candidate.recipe for trial in trials if trial.candidate.keep}
    for trial in sorted(trials, key=lambda one: -(one.ratio.value if one.ratio else 0.0)):
        candidate = trial.candidate
        worth = trial.status == "rejected" and trial.ratio is not None and trial.ratio.high > fastest
        if worth and _failed_for_precision(trial, context) and candidate.recipe not in tried and seconds_left() > 0:
            tried.add(candidate.recipe)
            try:
                keep = _find_nodes_to_keep(candidate, trial, context, baseline, seconds_left)
            except (TimeoutError, StillhouseError, CandidateError) as failure:
                why = str(failure) or "the time budget ended first"
                yield replace(trial, reason=f"{trial.reason}; no blocks were found to be kept: {why}")
            else:
                yield evaluate(replace(candidate, keep=tuple(sorted(keep))), context, baseline)[0]


def _failed_for_precision(trial: Trial, context: EvaluationContext) -> bool:
    """Whether it was rejected for what its own precision did, so that keeping some of it back may help.

    What errs only with many rows together does so for the engine's kernels, and is not looked at on the way.
    """
    own = trial.candidate.recipe in GRAPH_RECIPES and not trial.candidate.is_batch_dependent
    apart = {label: one for label, one in trial.fidelity.items() if LARGE_BATCH_LABEL not in label}
    return own and bool(find_violation(replace(trial, fidelity=apart), replace(context.bounds, max_memory=None)))


def _find_nodes_to_keep(
    candidate: Candidate,
    trial: Trial,
    context: EvaluationContext,
    baseline: BaselineRun,
    seconds_left: Callable[[], float],
) -> list[str]:
    """Names of the nodes to keep.

    Raises:
        StillhouseError: not even all blocks kept help, or the graph cannot be taken apart.
        TimeoutError: the time ended first.
        SubjectFailed: a graph could not be made or run.
    """
    from stillhouse.backends.graph_blocks import list_blocks, minimal_exact_blocks

    found = list_blocks(context.graph)
    nodes = {block.name: block.nodes for block in found}
    bound = context.bounds.min_sqnr or 0.0
    if trial.worst_fidelity and trial.worst_fidelity.sqnr >= bound:
        bound = trial.worst_fidelity.sqnr + _SQNR_MARGIN

    def passes(block_names: frozenset[str]) -> bool:
        if seconds_left() <= 0:
            raise TimeoutError
        asked = replace(candidate, keep=tuple(sorted(node for name in block_names for node in nodes[name])))
        return _measure_sqnr(asked, context, baseline) >= bound

    return [node for name in minimal_exact_blocks(found, passes) for node in nodes[name]]


def _measure_sqnr(candidate: Candidate, context: EvaluationContext, baseline: BaselineRun) -> float:
    build_artifact(candidate, context, baseline)
    with CandidateProcess(context.make_task(candidate), context.memory_limit, (baseline.process,)) as subject:
        for command in ("build", "open", "run_probes"):
            subject.call(command, timeout=context.timeout)
        fidelity = compare_probes(baseline.outputs, read_probes(subject.folder / OUTPUTS_FILE))
    shutil.rmtree(subject.folder)
    trial = Trial(candidate, "accepted", fidelity=fidelity)
    broken = find_violation(trial, replace(context.bounds, min_sqnr=None))
    return float("-inf") if broken or trial.worst_fidelity is None else trial.worst_fidelity.sqnr
