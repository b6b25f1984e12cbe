"""Build the graph of a candidate, for example by quantization, and describe the candidate as a manifest's component."""

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
"""File name of a distilled network's graph in the folder to which `students.copy_student_decoder` copies it."""
_BUILD_SECONDS_FILE = "seconds.txt"


def build_graph(candidate: Candidate, graph: Path, folder: Path, calibration: Sequence[Probe]) -> tuple[Path, float]:
    """Build a candidate's graph in a folder, unless the folder already contains it.

    The folder contains only the graph's files and its build time, because a pipeline's manifest lists all files next to
    a graph.

    Args:
        candidate: names the backend and the recipe (way to convert a graph, such as a quantization).
        graph: path of the original graph, which is returned unchanged if the recipe needs no other graph.
        folder: folder of the graph to build.
        calibration: inputs that static quantization is calibrated with, and on which a graph of an old opset is
            compared with its conversion; empty: there are none.

    Returns:
        the path of the graph to open, and the seconds that building it took, now or earlier; 0 if nothing is built.

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
        recipe.build(graph, staging / recipe.file_name, _feeds(calibration), candidate.keep)
        (staging / _BUILD_SECONDS_FILE).write_text(f"{perf_counter() - start:.3f}\n")
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    return folder / recipe.file_name, float(seconds_file.read_text())


def candidate_component(candidate: Candidate, graph: str, weights: str) -> Component:
    """Return a candidate (backend, precision and settings) as a component, the entry of a network in a pipeline's
    manifest, with these paths of the component's graph and weights; `weights` may be empty.
    """
    options = dict(candidate.options)
    threads = options.pop("threads", None)
    rows = options.pop("rows", "")
    options.pop("tile", None)  # removed, because the tile size is set for the whole pipeline, not for one network
    options.pop("student", None)  # removed, because the argument `graph` is the student's graph already
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
