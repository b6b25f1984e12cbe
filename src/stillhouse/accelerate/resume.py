"""The report that a sweep begins with: what an earlier run in its directory found, or an empty one."""

import os
import warnings
from dataclasses import replace
from datetime import UTC, datetime

from stillhouse.accelerate.evaluation.accuracy import judged
from stillhouse.accelerate.options import Asked, is_asked, question, with_defaults
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import REPORT, Bounds, Report, read_report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.apply import restore
from stillhouse.accelerate.workspace import Target
from stillhouse.errors import StillhouseError
from stillhouse.measure.machine import machine, versions

_PACKAGES = ("stillhouse", "numpy", "onnxruntime", "openvino", "nncf", "onnx", "torch", "diffusers")


def beginning(target: Target, asked: Asked) -> Report:
    """What an earlier run found, as far as it answers what is asked now; an empty report where there is none."""
    return _earlier(target, asked) or _fresh(target, asked)


def _earlier(target: Target, asked: Asked) -> Report | None:
    """What an earlier run in this directory found, as far as it answers what is asked now; None where it does not.

    Where the baseline itself does not count any more, nothing does that was compared with it.
    """
    if not (target.directory / REPORT).is_file():
        return None
    try:
        earlier = read_report(target.directory)
    except StillhouseError:
        earlier = None
    here = (machine().fingerprint(), versions(_PACKAGES), question(asked))
    if earlier is None or (earlier.fingerprint, earlier.versions, earlier.question) != here:
        why = "it was asked differently, or this machine or its runtimes have changed"
        warnings.warn(f"what was measured in {target.directory} before is measured again: {why}", stacklevel=2)
        restore(target.directory)
        return None
    bounds = with_defaults(asked.bounds, target)
    patient = (earlier.limit, earlier.memory) == (asked.limit, asked.memory)
    trials = [trial for trial in earlier.trials if _still_counts(trial, target, asked, bounds, patient)]
    kept = {(trial.candidate.component, trial.candidate.key) for trial in trials}
    lost = {name for name, key in earlier.baselines.items() if name != PIPELINE and (name, key) not in kept}
    return replace(
        earlier,
        trials=tuple(trial for trial in trials if trial.candidate.component not in lost),
        baselines={name: key for name, key in earlier.baselines.items() if name not in lost},
        chosen={},
        goal=asked.goal,
        bounds=bounds,
        budget=asked.budget,
        limit=asked.limit,
        memory=asked.memory,
        price=asked.price if asked.price is not None else earlier.price,
        exact=earlier.exact and earlier.bounds == bounds,
        finished=False,
    )


def _still_counts(trial: Trial, target: Target, asked: Asked, bounds: Bounds, patient: bool) -> bool:
    """Whether a trial of an earlier run need not be made again."""
    candidate = trial.candidate
    if trial.artefact and not (target.directory / trial.artefact).is_dir():
        return False
    if candidate.component == PIPELINE:
        return trial.ratio is not None
    if asked.components and candidate.component not in asked.components:
        return True
    if (asked.engines and candidate.backend not in asked.engines) or not is_asked(trial, asked):
        return False
    if trial.status == "failed":
        return patient
    return trial.ratio is not None and judged(trial, bounds).status != "skipped"


def _fresh(target: Target, asked: Asked) -> Report:
    here = machine()
    load = os.getloadavg()[0]
    return Report(
        source=target.name,
        goal=asked.goal,
        bounds=with_defaults(asked.bounds, target),
        machine=here,
        fingerprint=here.fingerprint(),
        versions=versions(_PACKAGES),
        load=(load, load),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        budget=asked.budget,
        price=asked.price,
        currency=asked.currency,
        question=question(asked),
        threads=asked.threads,
        limit=asked.limit,
        memory=asked.memory,
    )
