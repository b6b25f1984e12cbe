"""From a candidate to what a runtime opens: the component's own graph, or one that is made of it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.records.candidate import DISTILLED, GRAPH_RECIPES, Candidate
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.manifest import Component

DISTILLED_GRAPH_FILE = "model.onnx"
"""The file, in the folder of what its recipe makes, of a network that was distilled; see `students.lay_decoder`."""
_BUILD_SECONDS_FILE = "seconds.txt"
# What makes a graph is loaded when one is made: most candidates need none of it.
_BuildFunction = Callable[[Path, Path, Sequence[Probe], Sequence[str]], None]


def build_graph(candidate: Candidate, graph: Path, folder: Path, probes: Sequence[Probe]) -> tuple[Path, float]:
    """Make the candidate's graph in `folder`, or find it there; what is to be opened, and the seconds it took to make.

    Nothing else is written into `folder`, because a pipeline that runs the graph seals every file beside it.

    Raises:
        InvalidRequest: a recipe that its backend does not have.
        RuntimeMissing: what makes it is not installed.
        BackendFailed: it could not be made.
    """
    if candidate.recipe == DISTILLED:
        return folder / DISTILLED_GRAPH_FILE, 0.0
    if candidate.recipe not in GRAPH_RECIPES:
        return graph, 0.0
    recipe = _RECIPES.get((candidate.backend, candidate.recipe))
    if recipe is None:
        known = ", ".join(f"{backend} {name}" for backend, name in _RECIPES)
        raise InvalidRequest(f"there is no recipe {candidate.backend} {candidate.recipe}", allowed=known)
    name = "model.xml" if candidate.backend == "openvino" else "model.onnx"
    took = folder / _BUILD_SECONDS_FILE
    if not took.is_file():
        making = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        began = perf_counter()
        recipe(graph, making / name, probes, candidate.keep)
        (making / _BUILD_SECONDS_FILE).write_text(f"{perf_counter() - began:.3f}\n")
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    return folder / name, float(took.read_text())


def candidate_component(candidate: Candidate, graph: str, weights: str) -> Component:
    """The candidate as a manifest names it."""
    options = dict(candidate.options)
    threads = options.pop("threads", None)
    rows = options.pop("rows", "")
    options.pop("tile", None)  # a default of the pipeline, not of its network
    options.pop("student", None)  # says which graph it is
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


def _build_f16(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
    from stillhouse.backends.precision import convert_to_float16

    convert_to_float16(graph, out, keep=keep)


def _build_int8_static(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
    from stillhouse.backends.quantize import quantize_static

    quantize_static(graph, out, _feeds(probes), keep=keep)


def _symmetric_builder(number_format: Literal["int8", "fp8"]) -> _BuildFunction:
    def build(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import quantize_static

        quantize_static(graph, out, _feeds(probes), keep=keep, quant_type=number_format)

    return build


def _dynamic_builder(weights: Literal["int8", "uint8"]) -> _BuildFunction:
    def build(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import quantize_dynamic

        quantize_dynamic(graph, out, weights=weights, keep=keep)

    return build


def _build_openvino_int8(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
    from stillhouse.backends.quantize import quantize_openvino

    quantize_openvino(graph, out, _feeds(probes), keep=keep)


def _openvino_weights_builder(bits: Literal[4, 8]) -> _BuildFunction:
    def build(graph: Path, out: Path, probes: Sequence[Probe], keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import compress_openvino_weights

        compress_openvino_weights(graph, out, bits=bits, keep=keep)

    return build


_RECIPES: Mapping[tuple[str, str], _BuildFunction] = {
    ("onnxruntime", "f16"): _build_f16,
    ("onnxruntime", "int8-static"): _build_int8_static,
    ("onnxruntime", "int8-dynamic"): _dynamic_builder("int8"),
    ("onnxruntime", "uint8-dynamic"): _dynamic_builder("uint8"),
    ("tensorrt", "f16"): _build_f16,
    ("tensorrt", "int8-static"): _symmetric_builder("int8"),
    ("tensorrt", "fp8-static"): _symmetric_builder("fp8"),
    ("tensorrt-rtx", "f16"): _build_f16,
    ("tensorrt-rtx", "int8-static"): _symmetric_builder("int8"),
    ("tensorrt-rtx", "fp8-static"): _symmetric_builder("fp8"),
    ("openvino", "int8-static"): _build_openvino_int8,
    ("openvino", "int8-weights"): _openvino_weights_builder(8),
    ("openvino", "int4-weights"): _openvino_weights_builder(4),
}
