"""Engines on disk: found again by graph, chip and shapes, and built anew, with a warning, where one is another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.backends.signature import Signature, read_signature
from stillhouse.backends.tensorrt_cache import (
    EngineRebuilt,
    EngineTarget,
    ShapeRange,
    batch_profiles,
    graph_key,
    load_or_build,
    shape_ranges,
)
from stillhouse.errors import BackendFailed, InvalidRequest
from tests.backends.networks import unet, write_model

HERE = EngineTarget("NVIDIA H200", "9.0", "tensorrt 11.4")
GRAPH = Signature({"sample": ("rows", 4, "h", "w"), "timestep": ("rows",), "scale": (1,)}, ("out",), {}, "f32")
USUAL = {"sample": (2, 4, 64, 64), "timestep": (2,)}


class Builder:
    """Builds engines of a few letters, and opens those that it knows."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, out: Path) -> None:
        self.built += 1
        out.write_bytes(b"engine %d" % self.built)

    def open_engine(self, content: bytes) -> str | None:
        return content.decode() if content.startswith(b"engine") else None

    def __call__(self, folder: Path, key: str = "key", chip: EngineTarget = HERE) -> object:
        return load_or_build(folder, key, chip, self.build, self.open_engine)


def test_shapes_are_static_unless_axes_may_change() -> None:
    static = shape_ranges(GRAPH, USUAL)
    assert static["sample"] == ShapeRange(*[(2, 4, 64, 64)] * 3) and static["scale"] == ShapeRange((1,), (1,), (1,))
    open_ = shape_ranges(GRAPH, USUAL, {"rows": (1, 8), "w": (32, 96)})
    assert open_["sample"] == ShapeRange((1, 4, 64, 32), (2, 4, 64, 64), (8, 4, 64, 96))
    assert open_["sample"].contains((3, 4, 64, 33)) and not open_["sample"].contains((3, 4, 63, 33))
    assert not open_["sample"].contains((3, 4, 64))
    assert open_["timestep"] == ShapeRange((1,), (2,), (8,)) and open_["scale"] == static["scale"]


@pytest.mark.parametrize(
    ("usual", "ranges", "told"),
    [
        ({"sample": (2, 4, 64, 64)}, {}, "no shape for input 'timestep'"),
        ({**USUAL, "timestep": (2, 1)}, {}, "'timestep' has rank 2; allowed: rank 1"),
        ({**USUAL, "sample": (2, 5, 64, 64)}, {}, r"input 'sample' is \[2, 5, 64, 64\]; allowed"),
        (
            USUAL,
            {"rows": (3, 8)},
            "axis 0 has minimum, optimum and maximum 3, 2, 8; allowed: lengths of 1 or more that do not decrease",
        ),
        (USUAL, {"rows": (0, 8)}, "axis 0 has minimum, optimum and maximum 0, 2, 8"),
        (USUAL, {"row": (1, 8)}, "no axis 'row'; allowed: .*; did you mean 'rows'"),
    ],
)
def test_shapes_that_cannot_be_are_refused(
    usual: dict[str, tuple[int, ...]], ranges: dict[str, tuple[int, int]], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        shape_ranges(GRAPH, usual, ranges)


def test_batches_are_of_one_size_each() -> None:
    one, two = batch_profiles(GRAPH, USUAL, (1, 4))
    assert one["sample"] == ShapeRange(*[(1, 4, 64, 64)] * 3) and two["timestep"] == ShapeRange(*[(4,)] * 3)
    assert one["scale"] == two["scale"] == ShapeRange(*[(1,)] * 3)
    closed = Signature({"x": (2, 3)}, ("out",), {}, "f32")
    assert batch_profiles(closed, {}, (1, 4)) == [shape_ranges(closed, {})], "of one size there is one"


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    builder = Builder()
    assert [builder(tmp_path / "engines") for _ in range(3)] == ["engine 1"] * 3
    assert builder(tmp_path / "engines", key="another") == "engine 2"
    told = json.loads(next((tmp_path / "engines").glob("key-*.json")).read_text())
    assert told == {"name": "NVIDIA H200", "capability": "9.0", "builder": "tensorrt 11.4"}


@pytest.mark.parametrize(
    "other", [replace(HERE, name="NVIDIA A100", capability="8.0"), replace(HERE, builder="tensorrt 11.5")]
)
def test_one_of_another_chip_or_version_is_built_anew_and_said_so(other: EngineTarget, tmp_path: Path) -> None:
    builder = Builder()
    builder(tmp_path, chip=other)
    with pytest.warns(EngineRebuilt, match=f"is for {other.name}.*another one is built for NVIDIA H200"):
        assert builder(tmp_path) == "engine 2"
    assert builder(tmp_path) == "engine 2" and builder(tmp_path, chip=other) == "engine 1"


def test_one_that_cannot_be_opened_is_built_anew_and_said_so(tmp_path: Path) -> None:
    builder = Builder()
    builder(tmp_path)
    next(tmp_path.glob("*.engine")).write_bytes(b"half an eng")
    with pytest.warns(EngineRebuilt, match="cannot be opened .*, and is built again"):
        assert builder(tmp_path) == "engine 2"
    assert builder(tmp_path) == "engine 2"


def test_what_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        out.write_bytes(b"engi")
        raise BackendFailed("out of memory")

    with pytest.raises(BackendFailed, match="out of memory"):
        load_or_build(tmp_path, "key", HERE, fail, lambda content: content)
    assert not list(tmp_path.iterdir())


def test_a_key_tells_graphs_weights_and_shapes_apart(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    signature = read_signature(graph)
    usual = {
        name: tuple(axis if isinstance(axis, int) else 2 for axis in axes) for name, axes in signature.inputs.items()
    }
    shapes = [shape_ranges(signature, usual)]
    key = graph_key(graph, signature, shapes)
    assert key == graph_key(graph, signature, shapes)
    assert key != graph_key(graph, signature, [shape_ranges(signature, usual, {"B": (1, 4)})])
    assert key != graph_key(graph, signature, batch_profiles(signature, usual, (2, 4)))
    assert key != graph_key(graph, signature, shapes, ["conv.weight"])
    (tmp_path / "weights.bin").write_bytes(b"1234")
    beside = replace(signature, external={"weights.bin": 4})
    with_weights = graph_key(graph, beside, shapes)
    (tmp_path / "weights.bin").write_bytes(b"12345")
    assert len({key, with_weights, graph_key(graph, beside, shapes)}) == 3
