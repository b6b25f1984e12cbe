"""Build a candidate's graph with its recipe, and describe the candidate as a manifest component."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.records.candidate import DISTILLED, Candidate
from stillhouse.backends.registry import find_backend
from stillhouse.check import check_choice
from stillhouse.pipelines.manifest import Component

DISTILLED_GRAPH_FILE = "model.onnx"
"""Name of a distilled component's graph in its artifact folder; see `students.copy_student_decoder`."""
_BUILD_SECONDS_FILE = "seconds.txt"


def build_graph(candidate: Candidate, graph: Path, folder: Path, probes: Sequence[Probe]) -> tuple[Path, float]:
    """Build the candidate's graph in `folder`, or return the one that is already there.

    The folder contains only the graph's files and its build time, because a pipeline's manifest lists all files next to
    a graph.

    Args:
        candidate: candidate with the recipe that builds the graph.
        graph: the component's own graph, returned unchanged where the recipe builds none.
        folder: artifact folder.
        probes: calibration data of static quantization.

    Returns:
        the graph to open, and the seconds that building it took.

    Raises:
        InvalidRequest: the backend has no such recipe.
        RuntimeMissing: a package that the recipe needs is not installed.
        BackendFailed: building failed.
    """
    if candidate.recipe == DISTILLED:
        return folder / DISTILLED_GRAPH_FILE, 0.0
    if not candidate.makes_graph:
        return graph, 0.0
    recipes = find_backend(candidate.backend).recipes
    check_choice(f"recipe of {candidate.backend}", candidate.recipe, recipes)
    recipe = recipes[candidate.recipe]
    seconds_file = folder / _BUILD_SECONDS_FILE
    if not seconds_file.is_file():
        staging = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        start = perf_counter()
        recipe.build(graph, staging / recipe.file_name, _feeds(probes), candidate.keep)
        (staging / _BUILD_SECONDS_FILE).write_text(f"{perf_counter() - start:.3f}\n")
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    return folder / recipe.file_name, float(seconds_file.read_text())


def candidate_component(candidate: Candidate, graph: str, weights: str) -> Component:
    """Return the candidate as a manifest component that opens `graph`."""
    options = dict(candidate.options)
    threads = options.pop("threads", None)
    rows = options.pop("rows", "")
    options.pop("tile", None)  # `tile` is a default of the pipeline, not a setting of the component
    options.pop("student", None)  # `student` only selects the graph
    return Component(
        graph=graph,
        weights=weights,
        backend=candidate.backend,
        precision=candidate.precision,
        streams=int(options.pop("streams", "1")),
        threads=int(threads) if threads else None,
        static=options.pop("shapes", "") == "static",
        settings=options,
        rows=tuple(map(int, rows.split(","))) if rows else (),
    )


def _feeds(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    return [dict(probe.feeds) for probe in probes]
