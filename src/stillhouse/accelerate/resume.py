"""The report that a sweep begins with: what an earlier run in its directory found, or an empty one."""

import os
import warnings
from dataclasses import replace
from datetime import UTC, datetime

from stillhouse.accelerate.evaluation.accuracy import judge_trial
from stillhouse.accelerate.options import AccelerateOptions, checksum_options, fill_default_bounds, is_selected
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import REPORT_FILE, Bounds, Report, read_report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.apply import restore_original
from stillhouse.accelerate.workspace import Workspace
from stillhouse.errors import StillhouseError
from stillhouse.measure.machine import installed_versions, read_machine

_PACKAGES = ("stillhouse", "numpy", "onnxruntime", "openvino", "nncf", "onnx", "torch", "diffusers")


def load_or_create_report(workspace: Workspace, options: AccelerateOptions) -> Report:
    """What an earlier run found, as far as it answers what is asked now; an empty report where there is none."""
    return _load_report(workspace, options) or _create_report(workspace, options)


def _load_report(workspace: Workspace, options: AccelerateOptions) -> Report | None:
    """What an earlier run in this directory found, as far as it answers what is asked now; None where it does not.

    Where the baseline itself does not count any more, nothing does that was compared with it.
    """
    if not (workspace.directory / REPORT_FILE).is_file():
        return None
    try:
        earlier = read_report(workspace.directory)
    except StillhouseError:
        earlier = None
    here = (read_machine().fingerprint(), installed_versions(_PACKAGES), checksum_options(options))
    if earlier is None or (earlier.fingerprint, earlier.versions, earlier.options_checksum) != here:
        why = "it was asked differently, or this machine or its runtimes have changed"
        warnings.warn(f"what was measured in {workspace.directory} before is measured again: {why}", stacklevel=2)
        restore_original(workspace.directory)
        return None
    bounds = fill_default_bounds(options.bounds, workspace)
    patient = (earlier.timeout, earlier.memory_limit) == (options.timeout, options.memory_limit)
    trials = [trial for trial in earlier.trials if _is_still_valid(trial, workspace, options, bounds, patient)]
    kept = {(trial.candidate.component, trial.candidate.key) for trial in trials}
    lost = {name for name, key in earlier.baselines.items() if name != PIPELINE and (name, key) not in kept}
    return replace(
        earlier,
        trials=tuple(trial for trial in trials if trial.candidate.component not in lost),
        baselines={name: key for name, key in earlier.baselines.items() if name not in lost},
        chosen={},
        goal=options.goal,
        bounds=bounds,
        budget=options.budget,
        timeout=options.timeout,
        memory_limit=options.memory_limit,
        price=options.price if options.price is not None else earlier.price,
        exact_only=earlier.exact_only and earlier.bounds == bounds,
        finished=False,
    )


def _is_still_valid(
    trial: Trial, workspace: Workspace, options: AccelerateOptions, bounds: Bounds, same_limits: bool
) -> bool:
    """Whether a trial of an earlier run need not be made again."""
    candidate = trial.candidate
    if trial.artifact and not (workspace.directory / trial.artifact).is_dir():
        return False
    if candidate.component == PIPELINE:
        return trial.ratio is not None
    if options.components and candidate.component not in options.components:
        return True
    if (options.backends and candidate.backend not in options.backends) or not is_selected(trial, options):
        return False
    if trial.status == "failed":
        return same_limits
    return trial.ratio is not None and judge_trial(trial, bounds).status != "skipped"


def _create_report(workspace: Workspace, options: AccelerateOptions) -> Report:
    here = read_machine()
    load = os.getloadavg()[0]
    return Report(
        source=workspace.name,
        goal=options.goal,
        bounds=fill_default_bounds(options.bounds, workspace),
        machine=here,
        fingerprint=here.fingerprint(),
        versions=installed_versions(_PACKAGES),
        load=(load, load),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        budget=options.budget,
        price=options.price,
        currency=options.currency,
        options_checksum=checksum_options(options),
        threads=options.threads,
        timeout=options.timeout,
        memory_limit=options.memory_limit,
    )
