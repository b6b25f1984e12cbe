"""Further shapes follow from open axes or ranges; inputs of other shapes are cut off or repeated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from stillhouse.accelerate.auto_acceleration.config import check_config, read_config
from stillhouse.accelerate.calibration.infer_shapes import infer_shapes
from stillhouse.accelerate.calibration.inputs import plausible_inputs
from stillhouse.accelerate.calibration.other_shapes import other_shapes, resize_feeds, shape_arguments
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.backends.signature import read_signature
from stillhouse.cli.accelerate import parse_named_shape
from tests.accelerate import networks

Axis = int | str | None
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def identity(path: Path, **inputs: tuple[Sequence[Axis], int]) -> Path:
    net = networks.GraphBuilder(0)
    for name in inputs:
        net.add_node("Identity", name, out=f"{name}.out")
    values = [(name, axes, kind) for name, (axes, kind) in inputs.items()]
    return net.write_model(path, values, [(f"{name}.out", [None] * len(axes), kind) for name, axes, kind in values])


@pytest.mark.parametrize(
    ("axes", "shape", "others"),
    [
        (["n", 3, "h", "w"], (1, 3, 224, 224), [(2, 3, 224, 224), (1, 3, 352, 352)]),
        ([None, 3, None, None], (1, 3, 320, 64), [(2, 3, 320, 64), (1, 3, 480, 96)]),
        (["n", 3, 64, 64], (1, 3, 64, 64), [(2, 3, 64, 64)]),
        ([1, 3, "h", "w"], (1, 3, 48, 320), [(1, 3, 48, 480)]),  # a line of text
        ([1, 3, "h", 32], (1, 3, 16, 32), [(1, 3, 32, 32)]),
        (["n", 3, 64, 64], (4, 3, 64, 64), []),
        ([1, 3, 64, 64], (1, 3, 64, 64), []),
        (["n", "tokens", 8], (1, 12, 8), [(2, 12, 8), (1, 15, 8)]),
        ([None, None, 8], (1, 12, 8), [(2, 12, 8), (1, 15, 8)]),
    ],
)
def test_open_axes_grow(
    tmp_path: Path, axes: Sequence[Axis], shape: tuple[int, ...], others: list[tuple[int, ...]]
) -> None:
    graph = identity(tmp_path / "graph.onnx", x=(axes, FLOAT))
    assert other_shapes(graph, {"x": shape}, {}) == [{"x": other} for other in others]


def test_axes_of_one_name_grow_together(tmp_path: Path) -> None:
    graph = identity(
        tmp_path / "graph.onnx",
        ids=(["n", "tokens"], INT64),
        mask=(["n", "past + tokens"], INT64),
        past=(["n", 2, "past", 4], FLOAT),
    )
    shapes = infer_shapes(graph)
    assert shapes == {"ids": (1, 128), "mask": (1, 144), "past": (1, 2, 16, 4)}
    rows, longer = other_shapes(graph, shapes, {})
    assert rows == {"ids": (2, 128), "mask": (2, 144), "past": (2, 2, 16, 4)}
    assert longer == {"ids": (1, 131), "mask": (1, 150), "past": (1, 2, 19, 4)}


def test_tokens_stay_within_their_positions(tmp_path: Path) -> None:
    graph = networks.encoder(tmp_path / "encoder.onnx")
    for length, other in ((64, 61), (61, 64), (62, 59)):
        shapes = dict.fromkeys(("input_ids", "attention_mask"), (1, length))
        assert other_shapes(graph, shapes, {})[1]["input_ids"] == (1, other)


def test_ranges_give_their_ends(tmp_path: Path) -> None:
    graph = identity(tmp_path / "graph.onnx", x=(["n", 4, "h"], FLOAT), t=(["n"], FLOAT), z=([None], FLOAT))
    shapes = {"x": (2, 4, 32), "t": (2,), "z": (7,)}
    x = ((1, 4, 16), (4, 4, 64))
    assert other_shapes(graph, shapes, {"x": x}) == [
        {"x": (1, 4, 16), "t": (1,), "z": (7,)},
        {"x": (4, 4, 64), "t": (4,), "z": (7,)},
    ]
    # An axis that inputs share has the lengths that both allow.
    assert other_shapes(graph, shapes, {"x": x, "t": ((2,), (3,))}) == [
        {"x": (2, 4, 16), "t": (2,), "z": (7,)},
        {"x": (3, 4, 64), "t": (3,), "z": (7,)},
    ]
    assert other_shapes(graph, shapes, {"x": (shapes["x"], shapes["x"])}) == []
    assert other_shapes(graph, shapes, {"x": (shapes["x"], (2, 4, 64))}) == [{**shapes, "x": (2, 4, 64)}]


def test_a_config_with_a_range_around_its_shape_gives_both_ends(tmp_path: Path) -> None:
    """Auto-Acceleration's config.yml, with `use_shape` between `min_shape` and `max_shape`."""
    graph = networks.denoiser(tmp_path / "denoiser.onnx")
    ranges = {
        "sample": ([1, 9, 16, 16], [2, 9, 32, 32], [4, 9, 64, 64]),
        "timestep": ([1], [2], [4]),
        "encoder_hidden_states": ([1, 7, 32], [2, 77, 32], [4, 77, 32]),
    }
    lines = [
        f"\t{name}:\n\t\tmin_shape: {low}\n\t\tuse_shape: {use}\n\t\tmax_shape: {high}"
        for name, (low, use, high) in ranges.items()
    ]
    (tmp_path / "config.yml").write_text("\n".join(["device: cpu", "input:", *lines]))
    with pytest.warns(UserWarning, match="tabs"):
        config = read_config(tmp_path / "config.yml")
    check_config(config, read_signature(graph))
    assert infer_shapes(graph, config) == {name: tuple(shapes[1]) for name, shapes in ranges.items()}
    ends = other_shapes(graph, config.shapes, config.shape_ranges)
    assert ends == [{name: tuple(shapes[end]) for name, shapes in ranges.items()} for end in (0, 2)]
    runner = open_runner(graph, "onnxruntime", RunnerOptions(threads=1))
    (feeds,) = plausible_inputs(graph, config.shapes, 1).sets
    for shapes in ends:
        assert runner(resize_feeds([feeds], shapes))["out_sample"].shape[0] == shapes["sample"][0]


def test_a_batch_in_second_place_is_doubled(tmp_path: Path) -> None:
    """A recurrent operator reads [time, batch, features], and its state has [layers, batch, features]."""
    net = networks.GraphBuilder(0)
    weights = (net.weight(1, 16, 3), net.weight(1, 16, 4))
    net.add_node("LSTM", "x", *weights, "", "", "first", out="y", hidden_size=4)
    inputs: list[Any] = [("x", [None, None, 3], FLOAT), ("first", [1, None, 4], FLOAT)]
    graph = net.write_model(tmp_path / "graph.onnx", inputs, [("y", [None] * 4, FLOAT)])
    shapes = infer_shapes(graph)
    assert shapes == {"x": (128, 1, 3), "first": (1, 1, 4)}
    assert other_shapes(graph, shapes, {}) == [
        {"x": (128, 2, 3), "first": (1, 2, 4)},
        {"x": (131, 1, 3), "first": (1, 1, 4)},
    ]


PAIRS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=3)


@given(lengths=PAIRS, dtype=st.sampled_from(["float32", "int64", "bool", "uint8"]))
def test_values_repeat_along_each_axis(lengths: list[tuple[int, int]], dtype: str) -> None:
    old, new = (tuple(pair[place] for pair in lengths) for place in (0, 1))
    array = np.arange(np.prod(old)).reshape(old).astype(dtype)
    resized = resize_feeds([{"x": array}], {"x": new})["x"]
    assert resized.shape == new and resized.dtype == array.dtype
    for place in np.ndindex(new):
        assert resized[place] == array[tuple(index % length for index, length in zip(place, old, strict=True))]


def test_rows_that_are_added_differ_from_those_before() -> None:
    """Points minus the mean of all points are 0 for equal rows, so that the weights behind would not count."""
    sets = [{"x": np.full((1, 2), number)} for number in range(3)]
    assert resize_feeds(sets, {"x": (4, 2)})["x"][:, 0].tolist() == [0, 1, 2, 0]
    assert resize_feeds(sets, {"x": (2, 4)})["x"].tolist() == [[0, 0, 1, 1], [1, 1, 2, 2]]
    assert resize_feeds([sets[0], {"x": np.ones((2, 2))}], {"x": (2, 2)})["x"].max() == 0, "of another shape"


def test_an_empty_axis_grows_by_zeros() -> None:
    resized = resize_feeds([{"x": np.zeros((1, 0, 2), np.int32)}], {"x": (1, 3, 2)})["x"]
    assert resized.tolist() == [[[0, 0]] * 3] and resized.dtype == np.int32
    assert resize_feeds([{"x": np.ones((1, 3))}], {"x": (1, 0)})["x"].shape == (1, 0)


def test_shapes_are_written_as_options() -> None:
    shapes = {"images": (1, 3, 320, 320), "t": (), "past": (1, 4, 0, 16), "two words": (2,)}
    line = shape_arguments(shapes)
    assert line == "--shape images=1x3x320x320 --shape past=1x4x0x16 --shape 'two words=2'"
    assert parse_named_shape("past=1x4x0x16") == ("past", shapes["past"])
