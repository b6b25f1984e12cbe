"""The report that a sweep (run of `stillhouse accelerate`) starts from.

The report has the still valid measurements of an earlier run in the same directory, or is empty.
"""

import os
import warnings
from dataclasses import replace
from datetime import UTC, datetime

from stillhouse.accelerate.evaluation.accuracy import judge_trial
from stillhouse.accelerate.options import AccelerateOptions, checksum_options, fill_default_bounds, is_selected
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, PIPELINE
from stillhouse.accelerate.records.report import REPORT_FILE, Bounds, Report, read_report
from stillhouse.accelerate.records.trial import BUDGET_CUT, Trial
from stillhouse.accelerate.selection.apply import restore_original
from stillhouse.accelerate.workspace import Workspace
from stillhouse.backends.registry import backend_names, find_backend
from stillhouse.errors import StillhouseError
from stillhouse.measure.machine import installed_versions, read_machine

_PACKAGES = ("stillhouse", "numpy", "onnx")


def load_or_create_report(workspace: Workspace, options: AccelerateOptions) -> Report:
    """Return the report of an earlier run with its still valid trials (measured candidates), or a new empty report.

    The report is in the workspace (working directory). If machine, package versions or options have changed, or the
    report is damaged, warn and delete the report and its measurements.
    """
    return _load_report(workspace, options) or _create_report(workspace, options)


def _load_report(workspace: Workspace, options: AccelerateOptions) -> Report | None:
    """Return the report of an earlier run with its still valid trials (measured candidates); None: none can be reused.

    A component whose baseline is no longer valid loses all its trials, because they were compared with that baseline.
    If machine, package versions or options have changed, or the report is damaged, warn and delete the report and its
    measurements.
    """
    if not (workspace.directory / REPORT_FILE).is_file():
        return None
    try:
        earlier = read_report(workspace.directory)
    except StillhouseError:
        earlier = None
    identity = (read_machine().fingerprint(), package_versions(), checksum_options(options))
    if earlier is None or (earlier.fingerprint, earlier.versions, earlier.options_checksum) != identity:
        cause = "options, machine or runtime versions have changed"
        warnings.warn(f"earlier measurements in {workspace.directory} are discarded: {cause}", stacklevel=2)
        restore_original(workspace.directory)
        return None
    bounds = fill_default_bounds(options.bounds, workspace)
    same_limits = (earlier.timeout, earlier.memory_limit) == (options.timeout, options.memory_limit)
    trials = [trial for trial in earlier.trials if _is_still_valid(trial, workspace, options, bounds, same_limits)]
    valid = {(trial.candidate.component, trial.candidate.key) for trial in trials}
    invalid_components = {
        name for name, key in earlier.baselines.items() if name != PIPELINE and (name, key) not in valid
    }
    return replace(
        earlier,
        trials=tuple(trial for trial in trials if trial.candidate.component not in invalid_components),
        baselines={name: key for name, key in earlier.baselines.items() if name not in invalid_components},
        chosen={},
        goal=options.goal,
        bounds=bounds,
        budget=options.budget,
        timeout=options.timeout,
        memory_limit=options.memory_limit,
        price=options.price if options.price is not None else earlier.price,
        warnings=(),
        careful=earlier.careful if earlier.bounds == bounds else (),
        exact_only=earlier.exact_only and earlier.bounds == bounds,
        finished=False,
    )


def _is_still_valid(
    trial: Trial, workspace: Workspace, options: AccelerateOptions, bounds: Bounds, same_limits: bool
) -> bool:
    """Return whether a trial (measured candidate) of an earlier run can be reused with the present options and bounds.

    The options must select the candidate, and a graph that was built for it must still exist in the workspace. A failed
    trial is reused only if timeout and memory limit are unchanged (`same_limits`).
    """
    candidate = trial.candidate
    if trial.reason == BUDGET_CUT:
        return True
    if trial.artifact and not (workspace.directory / trial.artifact).is_dir():
        return False
    if candidate.component == PIPELINE:
        return trial.ratio is not None
    if options.components and candidate.component not in options.components:
        return True
    is_baseline = dict(candidate.options) == BASELINE_OPTIONS and candidate.recipe == "f32"
    is_backend_selected = not options.backends or candidate.backend in options.backends or is_baseline
    if not is_backend_selected or not is_selected(trial, options):
        return False
    if trial.status == "failed":
        return same_limits
    return trial.ratio is not None and judge_trial(trial, bounds).status != "skipped"


def package_versions() -> dict[str, str]:
    """Return the versions, by name, of the installed packages that influence measurements: backends, numpy and onnx."""
    packages = [package for name in backend_names() for package in find_backend(name).packages]
    return installed_versions([*_PACKAGES, *packages])


def _create_report(workspace: Workspace, options: AccelerateOptions) -> Report:
    machine = read_machine()
    return Report(
        source=workspace.name,
        goal=options.goal,
        bounds=fill_default_bounds(options.bounds, workspace),
        machine=machine,
        fingerprint=machine.fingerprint(),
        versions=package_versions(),
        load=(os.getloadavg()[0],) * 2,
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
