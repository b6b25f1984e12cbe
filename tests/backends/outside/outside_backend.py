"""A backend of another package, in one file: everything that a backend of Stillhouse's own has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.backends import ort
from stillhouse.backends.backend import Backend, CandidateContext, CandidateSpec, CompileScope, Recipe
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus
from stillhouse.backends.signature import Signature

INSTALL = "pip install outside-backend"
NOT_A_BACKEND = object()


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> Runner:
    runner = ort.open_graph(graph, signature, RunnerOptions(threads=options.threads, shapes=options.shapes))
    return replace(runner, backend="outside")


def status() -> BackendStatus:
    return BackendStatus("outside", "1.0", ("CPU",), ("f32",), None, INSTALL)


def compiles_per(settings: Mapping[str, str]) -> CompileScope:
    return "batch" if settings.get("mode") == "quick" else "shape"


def candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    yield CandidateSpec(options={"mode": "quick", "shapes": "static"}, rank=0)
    if context.cost == "high":
        yield CandidateSpec("copied", rank=0)
        yield CandidateSpec(options={"mode": "exact"})


def exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    return "exact is not worth a try" if spec.options.get("mode") == "exact" else ""


def copy(graph: Path, out: Path, feeds: Sequence[Mapping[str, Any]], keep: Sequence[str]) -> None:
    out.write_bytes(graph.read_bytes())
    out.with_name("calls.txt").write_text(f"{len(feeds)} calls, {len(keep)} nodes kept")


OUTSIDE = Backend(
    "outside",
    open_graph,
    status,
    INSTALL,
    settings={"mode": ("exact", "quick")},
    compiles_per=compiles_per,
    batch_settings={"mode": "quick"},
    adapter_settings={"mode": "exact"},
    count_settings={},
    packages=("outside-backend",),
    recipes={"copied": Recipe(copy, "copied.onnx")},
    candidates=candidates,
    exclusion=exclusion,
)
