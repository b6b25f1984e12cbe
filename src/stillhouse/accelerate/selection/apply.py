"""What was chosen becomes the pipeline: components and defaults go into the manifest, and what lost is cleared away."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, read_probes
from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.evaluation.evaluate import ARTIFACTS_FOLDER
from stillhouse.accelerate.records.candidate import DECODER, NETWORK, PIPELINE
from stillhouse.accelerate.records.report import REPORT_FILE, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import apply_variant
from stillhouse.accelerate.search.students import STUDENTS_FOLDER, prefix_paths, read_student_manifest
from stillhouse.accelerate.selection.choose import pareto_front
from stillhouse.accelerate.workspace import original_components, original_manifest
from stillhouse.backends.deepcache_split import split_unet
from stillhouse.errors import PipelineError, RuntimeMissing
from stillhouse.pipelines.manifest import MANIFEST, TRIALS, Component, Defaults, StepCache, Tuned, write_manifest
from stillhouse.pipelines.network import NETWORK_MANIFEST, NetworkRecord, write_network

VERIFY_FOLDER = "verify"
"""The directory of what a foreign machine verifies the choice with."""
MAX_ALTERNATIVES = 2


def apply_choice(directory: Path, report: Report) -> None:
    """Write the choice of the report into the directory's manifest."""
    if any(component == NETWORK for component in _component_names(report)):
        _apply_network(directory, report)
        return
    if name := report.chosen_student:
        manifest = prefix_paths(read_student_manifest(directory, name), f"{STUDENTS_FOLDER}/{name}")
        write_manifest(
            directory, replace(manifest, evidence={**manifest.evidence, "accelerate": _evidence_record(report)})
        )
        return
    components = chosen_components(directory, report)
    before = original_manifest(directory)
    walk, defaults = report.chosen.get(PIPELINE), chosen_defaults(directory, report)
    if walk:
        defaults = apply_variant(report.trial(PIPELINE, walk).candidate, defaults)
    same = components.get("unet") is not None and components["unet"].graph == before.components["unet"].graph
    cache = (
        make_step_cache(directory, components) if defaults.cache_interval > 1 else before.step_cache if same else None
    )
    if defaults.cache_interval > 1 and cache is None:
        defaults = replace(defaults, cache_interval=1)  # a network was chosen since that has not been cut
    chosen = replace(
        before,
        components=components,
        defaults=defaults,
        step_cache=cache,
        tuned=_tuning_record(directory, report),
        evidence={**before.evidence, "accelerate": _evidence_record(report)},
    )
    write_manifest(directory, chosen)


def _tuning_record(directory: Path, report: Report) -> Tuned:
    """What another machine needs to verify the choice: one probe of each network, and what else there is."""
    probes, alternatives = {}, {}
    components = original_components(directory)
    for name in report.chosen:
        baseline = report.baselines.get(name)
        if name not in components or baseline is None:
            continue
        outputs = directory / TRIALS / name / baseline / OUTPUTS_FILE
        if outputs.is_file():
            path = f"{VERIFY_FOLDER}/{name}.npz"
            _write_verify_file(directory / path, directory / TRIALS / name / PROBES_FILE, outputs)
        probes[name] = f"{VERIFY_FOLDER}/{name}.npz"
        others = [trial for trial in pareto_front(report.trials_of(name)) if trial.candidate.key != report.chosen[name]]
        others = [trial for trial in others if "tile" not in trial.candidate.options]  # the same network
        last = report.trial(name, baseline)
        ordered = [*[one for one in others if one != last][:MAX_ALTERNATIVES], last]
        alternatives[name] = tuple(_chosen_component(one, components[name], report.threads) for one in ordered)
    return Tuned(report.fingerprint, report.bounds.min_sqnr or 0.0, probes, alternatives)


def _write_verify_file(path: Path, probes: Path, outputs: Path) -> None:
    feeds, wanted = read_probes(probes)[0].feeds, read_probes(outputs)[0].feeds
    arrays = {f"feed/{name}": array for name, array in feeds.items()}
    arrays |= {f"want/{name}": array for name, array in wanted.items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def chosen_components(directory: Path, report: Report) -> dict[str, Component]:
    """By name, what the report chose; where it chose nothing, what was there before."""
    components = original_components(directory)
    for name, component in components.items():
        key = report.chosen.get(name)
        if key:
            components[name] = _chosen_component(report.trial(name, key), component, report.threads)
    return components


def chosen_defaults(directory: Path, report: Report) -> Defaults:
    """The defaults that the chosen networks ask for, whatever way to walk is chosen: how the decoder sees a picture."""
    defaults = original_manifest(directory).defaults
    decoder = report.chosen.get(DECODER)
    tile = report.trial(DECODER, decoder).candidate.options.get("tile") if decoder else None
    return replace(defaults, tile=int(tile)) if tile else defaults


def make_step_cache(directory: Path, components: Mapping[str, Component]) -> StepCache | None:
    """The U-Net's graph in two depths, made beside it; None where it cannot be cut, or a made graph has its place."""
    graph = components["unet"].graph
    if graph != original_components(directory)["unet"].graph:
        return None
    try:
        cut = split_unet(directory / graph)
    except (PipelineError, RuntimeMissing):
        return None
    return StepCache(*(path.relative_to(directory).as_posix() for path in (cut.full, cut.shallow)))


def remove_leftovers(directory: Path, report: Report) -> None:
    """Remove what only the sweep needed. Graphs of what was measured stay: other bounds may choose them."""
    kept = {trial.artifact for trial in report.trials if trial.ratio}
    for name in _component_names(report):
        folder = directory / TRIALS / name
        for artefact in (folder / ARTIFACTS_FOLDER).glob("*"):
            if artefact.relative_to(directory).as_posix() not in kept:
                shutil.rmtree(artefact)
        baseline = report.baselines.get(name)
        for trial in report.trials_of(name):
            is_baseline = trial.candidate.key == baseline
            # A sweep that goes on compares with the same pictures, which on a large model take minutes to draw.
            if not (is_baseline and report.is_resumable):
                (folder / trial.candidate.key / PICTURES_FILE).unlink(missing_ok=True)
            if not is_baseline:
                (folder / trial.candidate.key / OUTPUTS_FILE).unlink(missing_ok=True)


def restore_original(directory: Path) -> None:
    """Make the directory what it was before anything was chosen, and forget every trial and probe."""
    if (directory / TRIALS / MANIFEST).is_file():
        write_manifest(directory, original_manifest(directory))
    else:
        (directory / NETWORK_MANIFEST).unlink(missing_ok=True)
    (directory / REPORT_FILE).unlink(missing_ok=True)
    for entry in (directory / TRIALS).iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _component_names(report: Report) -> list[str]:
    return list(dict.fromkeys(trial.candidate.component for trial in report.trials))


def _chosen_component(trial: Trial, original: Component, threads: int | None) -> Component:
    graph = trial.graph if trial.artifact and trial.graph else original.graph
    component = candidate_component(trial.candidate, graph, original.weights)
    return replace(component, threads=component.threads or threads)


def _apply_network(directory: Path, report: Report) -> None:
    key = report.chosen.get(NETWORK) or report.baselines.get(NETWORK)
    if key is None:
        return
    trial = report.trial(NETWORK, key)
    if trial.graph is None or not (directory / trial.graph).is_file():
        raise PipelineError(f"{directory} lacks the graph of {trial.candidate.name}", fix="run the sweep again")
    probe = read_probes(directory / TRIALS / NETWORK / PROBES_FILE)[0]
    shapes = {name: array.shape for name, array in probe.feeds.items()}
    component = _chosen_component(trial, Component(trial.graph, ""), report.threads)
    write_network(directory, NetworkRecord(report.source, component, shapes))


def _evidence_record(report: Report) -> Mapping[str, object]:
    told: dict[str, object] = {"fingerprint": report.fingerprint, "goal": report.goal, "started": report.started}
    for name, key in report.chosen.items():
        ratio = report.trial(name, key).ratio
        told[name] = {"candidate": report.trial(name, key).candidate.name, "ratio": ratio.value if ratio else None}
    return told
