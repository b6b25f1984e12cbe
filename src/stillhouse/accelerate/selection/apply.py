"""Application of the choice that `stillhouse accelerate` made among measured candidates.

The chosen networks and default settings are written into the pipeline's manifest, and temporary files are removed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, read_probes
from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.evaluation.context import ARTIFACTS_FOLDER
from stillhouse.accelerate.evaluation.scored_samples import SCORED_FILE
from stillhouse.accelerate.records.candidate import DECODER, NETWORK, PIPELINE
from stillhouse.accelerate.records.report import REPORT_FILE, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import apply_variant
from stillhouse.accelerate.search.students import STUDENTS_FOLDER, prefix_paths, read_student_manifest
from stillhouse.accelerate.selection.choose import pareto_front
from stillhouse.accelerate.workspace import f32_components, original_components, original_manifest
from stillhouse.backends.deepcache_split import split_denoiser
from stillhouse.backends.signature import OPENVINO_SUFFIX
from stillhouse.errors import PipelineError, RuntimeMissing
from stillhouse.pipelines.fastest_component import RecordedCall, write_recorded_call
from stillhouse.pipelines.manifest import (
    MANIFEST,
    TRIALS,
    VERIFY_FOLDER,
    Component,
    Defaults,
    StepCache,
    Tuned,
    write_manifest,
)
from stillhouse.pipelines.network import NETWORK_MANIFEST, NetworkRecord, write_network

MAX_ALTERNATIVES = 2


def apply_choice(directory: Path, report: Report) -> None:
    """Write the chosen networks and settings of a report into the manifest of a directory.

    For a single ONNX file, the manifest of the network is written. If a distilled student was chosen, the manifest of
    the student is written.

    Args:
        directory: working directory of `stillhouse accelerate`.
        report: report with the choice.

    Raises:
        PipelineError: the graph of the chosen candidate of a single ONNX file is missing.
    """
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
    original = original_manifest(directory)
    variant, defaults = report.chosen.get(PIPELINE), chosen_defaults(directory, report)
    if variant:
        defaults = apply_variant(report.trial(PIPELINE, variant).candidate, defaults)
    is_same_graph = (
        components.get("denoiser") is not None and components["denoiser"].graph == original.components["denoiser"].graph
    )
    step_cache = (
        make_step_cache(directory, components)
        if defaults.cache_interval > 1
        else original.step_cache
        if is_same_graph
        else None
    )
    if defaults.cache_interval > 1 and step_cache is None:
        # A cache_interval of 1 turns feature caching off. Caching needs a denoiser that is split in two graphs, and
        # this denoiser is not split.
        defaults = replace(defaults, cache_interval=1)
    chosen = replace(
        original,
        components=components,
        defaults=defaults,
        step_cache=step_cache,
        tuned=_tuning_record(directory, report),
        evidence={**original.evidence, "accelerate": _evidence_record(report)},
    )
    write_manifest(directory, chosen)


def _tuning_record(directory: Path, report: Report) -> Tuned:
    """Write files by which another machine checks the chosen networks, and return the manifest's record of these files.

    The record names a file with recorded inputs and reference outputs of each network, and for each network alternative
    candidates in the order of their speed, with the baseline last.

    Args:
        directory: working directory of `stillhouse accelerate`.
        report: report with the choice.
    """
    probes, alternatives = {}, {}
    components = original_components(directory)
    for name in report.chosen:
        baseline = report.baselines.get(name)
        if name not in components or baseline is None:
            continue
        outputs = directory / TRIALS / name / baseline / OUTPUTS_FILE
        if outputs.is_file():
            path = f"{VERIFY_FOLDER}/{name}.npz"
            feeds = read_probes(directory / TRIALS / name / PROBES_FILE)[0].feeds
            write_recorded_call(directory / path, RecordedCall(feeds, read_probes(outputs)[0].feeds))
        probes[name] = f"{VERIFY_FOLDER}/{name}.npz"
        others = [trial for trial in pareto_front(report.trials_of(name)) if trial.candidate.key != report.chosen[name]]
        # Candidates with the option "tile" are left out, because an alternative replaces a single network, while the
        # tile size is a setting of the whole pipeline.
        others = [trial for trial in others if "tile" not in trial.candidate.options]
        baseline_trial = report.trial(name, baseline)
        ordered = [*[trial for trial in others if trial != baseline_trial][:MAX_ALTERNATIVES], baseline_trial]
        alternatives[name] = tuple(_chosen_component(trial, components[name], report.threads) for trial in ordered)
    return Tuned(report.fingerprint, report.bounds.min_sqnr or 0.0, probes, alternatives)


def chosen_components(directory: Path, report: Report) -> dict[str, Component]:
    """Return the chosen networks of a working directory's pipeline by name, as manifest components.

    Where the report chooses no candidate for a network, the original network is returned. Where the report chooses the
    baseline of the whole pipeline, all networks are as in this baseline: the original graphs on onnxruntime in float32.
    """
    if keeps_original_pipeline(report):
        return {
            name: replace(component, threads=report.threads) for name, component in f32_components(directory).items()
        }
    components = original_components(directory)
    for name, component in components.items():
        key = report.chosen.get(name)
        if key:
            components[name] = _chosen_component(report.trial(name, key), component, report.threads)
    return components


def keeps_original_pipeline(report: Report) -> bool:
    """Return whether the report chooses the baseline of the whole pipeline, because no measured pipeline is better."""
    return PIPELINE in report.chosen and report.chosen[PIPELINE] == report.baselines.get(PIPELINE)


def chosen_defaults(directory: Path, report: Report) -> Defaults:
    """Return the default settings of a working directory's original pipeline, with the chosen decoder's tile size."""
    defaults = original_manifest(directory).defaults
    decoder = report.chosen.get(DECODER)
    tile = report.trial(DECODER, decoder).candidate.options.get("tile") if decoder else None
    return replace(defaults, tile=int(tile)) if tile else defaults


def make_step_cache(directory: Path, components: Mapping[str, Component]) -> StepCache | None:
    """Split the denoiser into two graphs for feature caching (DeepCache), and write both beside the denoiser's graph.

    One graph is the whole denoiser with its deep features as an output. The other graph has only the shallow layers,
    and takes the deep features as an input: the last layer of the last up block and what its skip connection needs, as
    in the paper. The paths of both are returned, or None where the denoiser cannot be split: its graph is neither the
    original one nor one for OpenVINO.

    Args:
        directory: working directory of `stillhouse accelerate`.
        components: networks of the pipeline by name.
    """
    graph = components["denoiser"].graph
    if graph != original_components(directory)["denoiser"].graph and not graph.endswith(OPENVINO_SUFFIX):
        return None
    try:
        split = split_denoiser(directory / graph, layer=-1)
    except (PipelineError, RuntimeMissing):
        return None
    return StepCache(*(path.relative_to(directory).as_posix() for path in (split.full, split.shallow)))


def remove_leftovers(directory: Path, report: Report) -> None:
    """Remove from a working directory what only measuring needed: pictures, outputs, and graphs that were never timed.

    Kept are graphs of measured candidates, which `stillhouse choose` may choose later, the baseline's outputs, and also
    the baseline's pictures if `stillhouse accelerate` was interrupted and can be resumed.
    """
    measured = {trial.artifact for trial in report.trials if trial.ratio}
    built = {artifact for name in _component_names(report) for artifact in _list_artifacts(directory, name)}
    unused = () if report.is_resumable else built - measured  # an interrupted run goes on with what it has built
    for artifact in unused:
        shutil.rmtree(directory / artifact)
    for name in _component_names(report):
        folder = directory / TRIALS / name
        baseline = report.baselines.get(name)
        for trial in report.trials_of(name):
            is_baseline = trial.candidate.key == baseline
            # While the run can be resumed, the baseline's pictures are kept: a large model generates them for minutes.
            if not (is_baseline and report.is_resumable):
                for file in (PICTURES_FILE, SCORED_FILE):
                    (folder / trial.candidate.key / file).unlink(missing_ok=True)
            if not is_baseline:
                (folder / trial.candidate.key / OUTPUTS_FILE).unlink(missing_ok=True)


def _list_artifacts(directory: Path, component: str) -> list[str]:
    folder = directory / TRIALS / component / ARTIFACTS_FOLDER
    return [artifact.relative_to(directory).as_posix() for artifact in folder.glob("*")]


def restore_original(directory: Path) -> None:
    """Restore the original manifest of a working directory, and remove its report, measurements and recorded inputs."""
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
        raise PipelineError(
            f"{directory} lacks the graph of {trial.candidate.name}", fix="run `stillhouse accelerate` again"
        )
    probe = read_probes(directory / TRIALS / NETWORK / PROBES_FILE)[0]
    shapes = {name: array.shape for name, array in probe.feeds.items()}
    component = _chosen_component(trial, Component(trial.graph, ""), report.threads)
    write_network(directory, NetworkRecord(report.source, component, shapes))


def _evidence_record(report: Report) -> Mapping[str, object]:
    record: dict[str, object] = {"fingerprint": report.fingerprint, "goal": report.goal, "started": report.started}
    for name, key in report.chosen.items():
        ratio = report.trial(name, key).ratio
        record[name] = {"candidate": report.trial(name, key).candidate.name, "ratio": ratio.value if ratio else None}
    return record
