"""What failed for its precision is tried again with as few blocks as possible kept as they are."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stillhouse.accelerate.calibration.calibration_data import TOGETHER, read_probes
from stillhouse.accelerate.evaluation.accuracy import check_tensors, missed
from stillhouse.accelerate.evaluation.candidate_process import Subject, SubjectFailed
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS
from stillhouse.accelerate.evaluation.evaluate import Bench, Reference, attempt, make
from stillhouse.accelerate.records.candidate import MADE, Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_of
from stillhouse.errors import StillhouseError

_MARGIN = 5.0
"""dB that a keep-list must gain over a missed picture bound, since only tensors are looked at on the way."""


def rescue(trials: Sequence[Trial], bench: Bench, reference: Reference, left: Callable[[], float]) -> Iterator[Trial]:
    """Trials with a keep-list, of those that were rejected for their precision and were fast enough to be worth it;
    where no keep-list is found, the rejected trial with what became of the search."""
    best = best_of(trials, "latency")
    fastest = best.ratio.value if best and best.ratio else 1.0
    tried = {trial.candidate.recipe for trial in trials if trial.candidate.keep}
    for trial in sorted(trials, key=lambda one: -(one.ratio.value if one.ratio else 0.0)):
        candidate = trial.candidate
        worth = trial.status == "rejected" and trial.ratio is not None and trial.ratio.high > fastest
        if worth and _erred(trial, bench) and candidate.recipe not in tried and left() > 0:
            tried.add(candidate.recipe)
            try:
                keep = _least(candidate, trial, bench, reference, left)
            except (TimeoutError, StillhouseError, SubjectFailed) as failure:
                why = str(failure) or "the time budget ended first"
                yield replace(trial, reason=f"{trial.reason}; no blocks were found to be kept: {why}")
            else:
                yield attempt(replace(candidate, keep=tuple(sorted(keep))), bench, reference)[0]


def _erred(trial: Trial, bench: Bench) -> bool:
    """Whether it was rejected for what its own precision did, so that keeping some of it back may help.

    What errs only with many rows together does so for the engine's kernels, and is not looked at on the way.
    """
    own = trial.candidate.recipe in MADE and not trial.candidate.is_neighbourly
    apart = {label: one for label, one in trial.fidelity.items() if TOGETHER not in label}
    return own and bool(missed(replace(trial, fidelity=apart), replace(bench.bounds, max_memory=None)))


def _least(
    candidate: Candidate, trial: Trial, bench: Bench, reference: Reference, left: Callable[[], float]
) -> list[str]:
    """Names of the nodes to keep.

    Raises:
        StillhouseError: not even all blocks kept help, or the graph cannot be taken apart.
        TimeoutError: the time ended first.
        SubjectFailed: a graph could not be made or run.
    """
    from stillhouse.backends.graph_blocks import bisect, blocks

    found = blocks(bench.graph)
    nodes = {block.name: block.nodes for block in found}
    bound = bench.bounds.min_sqnr or 0.0
    if trial.worst and trial.worst.sqnr >= bound:
        bound = trial.worst.sqnr + _MARGIN

    def passes(kept: frozenset[str]) -> bool:
        if left() <= 0:
            raise TimeoutError
        asked = replace(candidate, keep=tuple(sorted(node for name in kept for node in nodes[name])))
        return _sqnr(asked, bench, reference) >= bound

    return [node for name in bisect(found, passes) for node in nodes[name]]


def _sqnr(candidate: Candidate, bench: Bench, reference: Reference) -> float:
    make(candidate, bench, reference)
    with Subject(bench.task(candidate), bench.memory, (reference.subject,)) as subject:
        for command in ("build", "open", "outputs"):
            subject.ask(command, limit=bench.limit)
        fidelity = check_tensors(reference.outputs, read_probes(subject.folder / OUTPUTS))
    shutil.rmtree(subject.folder)
    trial = Trial(candidate, "accepted", fidelity=fidelity)
    broken = missed(trial, replace(bench.bounds, min_sqnr=None))
    return float("-inf") if broken or trial.worst is None else trial.worst.sqnr
