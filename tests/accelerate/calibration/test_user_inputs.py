"""Inputs that a user gives for a bare ONNX file are read from an .npz file or from a folder of pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

from stillhouse.accelerate.calibration.real_pictures import PIXELS
from stillhouse.accelerate.calibration.user_inputs import (
    MAX_PICTURES,
    Feeds,
    read_npz_inputs,
    read_picture_inputs,
    read_user_inputs,
)
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.errors import InvalidRequest
from tests.accelerate import networks


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {name: networks.NETWORKS[name](folder / f"{name}.onnx") for name in ("encoder", "numbered")}


def saved(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


IDS = np.arange(12).reshape(2, 6)


def same(actual: Sequence[Feeds], expected: Sequence[Feeds]) -> bool:
    return len(actual) == len(expected) and all(
        first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
        for first, second in zip(actual, expected, strict=True)
    )


def test_own_inputs_are_read(graphs: dict[str, Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "own.npz", attention_mask=np.ones_like(IDS), input_ids=IDS)
    got = read_npz_inputs(path, graphs["encoder"])
    assert same(got, [{"input_ids": IDS, "attention_mask": np.ones_like(IDS)}])
    assert list(got[0]) == ["input_ids", "attention_mask"]


def test_an_axis_in_front_holds_several(graphs: dict[str, Path], tmp_path: Path) -> None:
    ids, mask = np.stack([IDS, IDS + 1, IDS + 2]), np.ones_like(IDS)
    got = read_npz_inputs(saved(tmp_path / "own.npz", input_ids=ids, attention_mask=mask), graphs["encoder"])
    assert same(got, [{"input_ids": row, "attention_mask": mask} for row in ids])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": IDS}, r"lacks arrays for attention_mask; allowed: an array for each input"),
        (
            {"input_id": IDS, "attention_mask": IDS},
            r"there is no input \(in own.npz\) 'input_id'; allowed: .*; did you mean 'input_ids'\?",
        ),
        (
            {"input_ids": IDS.astype(np.int32), "attention_mask": IDS},
            r"array 'input_ids' has the dtype int32; allowed: int64; use .astype\('int64'\)",
        ),
        (
            {"input_ids": IDS[0], "attention_mask": IDS},
            r"'input_ids' has 1 axes; allowed: 2 axes, or 3 of which the first counts sets of inputs",
        ),
        (
            {"input_ids": IDS, "attention_mask": IDS[:, :3]},
            r"input 'attention_mask' has shape \[2, 3\]; allowed: \[batch, sequence\]",
        ),
        (
            {"input_ids": np.stack([IDS] * 2), "attention_mask": np.stack([IDS] * 3)},
            r"has different numbers of input sets in its arrays: input_ids 2, attention_mask 3; "
            r"allowed: the same number of sets in each array, at least 1",
        ),
        (
            {"input_ids": IDS[None][:0], "attention_mask": IDS},
            r"has different numbers of input sets in its arrays: input_ids 0; "
            r"allowed: the same number of sets in each array, at least 1",
        ),
        (
            {"input_ids": np.array([[None]]), "attention_mask": IDS},
            r"own.npz cannot be read: Object arrays cannot be loaded",
        ),
    ],
)
def test_own_inputs_that_do_not_fit(
    graphs: dict[str, Path], tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_npz_inputs(saved(tmp_path / "own.npz", **arrays), graphs["encoder"])


def test_own_inputs_may_be_text(tmp_path: Path) -> None:
    net = networks.GraphBuilder(0)
    net.add_node("Shape", "words", out="count")
    inputs: list[networks.ValueInfo] = [("words", ["n"], TensorProto.STRING)]
    graph = net.write_model(tmp_path / "text.onnx", inputs, [("count", [1], TensorProto.INT64)])
    np.savez(tmp_path / "words.npz", words=np.array([["One", "two"], ["three", "four"]]))
    first, second = read_npz_inputs(tmp_path / "words.npz", graph)
    assert first["words"].tolist() == ["One", "two"] and second["words"].dtype == object
    assert open_runner(graph)(first)["count"] == [2]


def test_own_inputs_hold_no_nan(graphs: dict[str, Path], tmp_path: Path) -> None:
    arrays = {"0": np.zeros((1, 16), np.float32), "1": np.full((1, 16), np.nan, np.float32)}
    with pytest.raises(InvalidRequest, match=r"'1' contains NaN"):
        read_npz_inputs(saved(tmp_path / "own.npz", **arrays), graphs["numbered"])


def test_own_inputs_in_another_byte_order(graphs: dict[str, Path], tmp_path: Path) -> None:
    arrays = {name: np.ones((1, 16), ">f4") for name in ("0", "1")}
    feeds = read_npz_inputs(saved(tmp_path / "own.npz", **arrays), graphs["numbered"])[0]
    assert open_runner(graphs["numbered"], "onnxruntime", RunnerOptions(threads=1))(feeds)["5"].shape == (1, 8)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_broken_file_of_inputs(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("broken")
    graph = networks.numbered(folder / "numbered.onnx")
    path = saved(folder / "own.npz", **{"0": np.ones((1, 16), np.float32), "1": np.ones((1, 16), np.float32)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert [sorted(feeds) for feeds in read_npz_inputs(path, graph)] == [["0", "1"]]
    except InvalidRequest as error:
        assert "own.npz" in str(error)


def test_other_files_of_inputs(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"own.npz does not exist; allowed: .*; write it with numpy.savez"):
        read_npz_inputs(tmp_path / "own.npz", graphs["encoder"])
    np.save(tmp_path / "own.npy", IDS)
    with pytest.raises(InvalidRequest, match=r"own.npy contains one array without a name; allowed: an .npz file"):
        read_npz_inputs(tmp_path / "own.npy", graphs["encoder"])


def picture_network(path: Path, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Path:
    net = networks.GraphBuilder(0)
    net.add_node("Identity", "images", out="y")
    return net.write_model(path, [("images", shape, kind)], [("y", [None] * len(shape), kind)])


def write_colours(folder: Path, *colours: tuple[int, int, int]) -> Path:
    folder.mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (9, 7), colour).save(folder / f"{number:03}.png")
    return folder


SIZE = {"images": (1, 3, 4, 5)}
COLOUR = (255, 51, 0)


@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        ("0..1", (1, 0.2, 0)),
        ("0..255", (255, 51, 0)),
        ("-1..1", (1, -0.6, -1)),
        ("imagenet", ((1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225)),
        ("0..255:bgr", (0, 51, 255)),
        ("imagenet:bgr", ((0 - 0.406) / 0.225, (0.2 - 0.456) / 0.224, (1 - 0.485) / 0.229)),
    ],
)
def test_pictures_become_inputs(tmp_path: Path, pixels: str, values: tuple[float, float, float]) -> None:
    folder = write_colours(tmp_path / "pictures", COLOUR)
    graph = picture_network(tmp_path / "g.onnx", [1, 3, 4, 5])
    (feeds,) = read_picture_inputs(folder, graph, SIZE, pixels)
    array = feeds["images"]
    assert array.shape == (1, 3, 4, 5) and array.dtype == np.float32
    np.testing.assert_allclose(array, np.broadcast_to(np.reshape(values, (3, 1, 1)), (1, 3, 4, 5)), atol=1e-6)


def test_bytes_need_no_range(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "pictures", COLOUR)
    graph = picture_network(tmp_path / "g.onnx", ["n", "h", "w", 3], TensorProto.UINT8)
    for pixels in ("", "0..255"):
        (feeds,) = read_picture_inputs(folder, graph, {"images": (1, 4, 5, 3)}, pixels)
        assert feeds["images"].dtype == np.uint8 and (feeds["images"] == COLOUR).all()
    with pytest.raises(InvalidRequest, match=r"--pixels 0..1 was given for an input of uint8; allowed: 0..255"):
        read_picture_inputs(folder, graph, {"images": (1, 4, 5, 3)}, "0..1")


def test_a_file_may_tell_its_range(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "pictures", COLOUR)
    graph = picture_network(tmp_path / "g.onnx", [1, 3, 4, 5])
    model = onnx.load(graph)
    onnx.helper.set_model_props(model, {"author": "Ultralytics"})
    graph.write_bytes(model.SerializeToString())
    for pixels, red in (("", 1), ("0..1", 1), ("0..255", 255)):
        (feeds,) = read_picture_inputs(folder, graph, SIZE, pixels)
        assert (feeds["images"][:, 0] == red).all()


def test_each_set_takes_as_many_pictures_as_rows(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "pictures", *[(number, 0, 0) for number in range(5)])
    (folder / "notes.txt").write_text("no picture")
    graph = picture_network(tmp_path / "g.onnx", [2, 3, 4, 5])
    sets = read_picture_inputs(folder, graph, {"images": (2, 3, 4, 5)}, "0..255")
    assert [feeds["images"][:, 0, 0, 0].tolist() for feeds in sets] == [[0, 1], [2, 3], [4, 0]]


def test_of_many_pictures_evenly_spread_ones_are_taken(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "pictures", *[(number, 0, 0) for number in range(2 * MAX_PICTURES)])
    graph = picture_network(tmp_path / "g.onnx", [1, 3, 4, 5])
    sets = read_picture_inputs(folder, graph, SIZE, "0..255")
    assert [int(feeds["images"][0, 0, 0, 0]) for feeds in sets] == list(range(0, 2 * MAX_PICTURES, 2))


def test_a_folder_and_a_file_are_told_apart(tmp_path: Path, graphs: dict[str, Path]) -> None:
    folder = write_colours(tmp_path / "pictures", COLOUR)
    graph = picture_network(tmp_path / "g.onnx", ["n", 3, "h", "w"])
    assert read_user_inputs(folder, graph, {}, "0..1")[0]["images"].shape == (1, 3, 224, 224)
    assert read_user_inputs(folder, graph, SIZE, "0..1")[0]["images"].shape == (1, 3, 4, 5)
    path = saved(tmp_path / "own.npz", input_ids=IDS, attention_mask=IDS)
    assert same(read_user_inputs(path, graphs["encoder"], {}), [{"input_ids": IDS, "attention_mask": IDS}])
    with pytest.raises(InvalidRequest, match=r"--pixels 0..1 was given, but .*own.npz is no folder of pictures"):
        read_user_inputs(path, graphs["encoder"], {}, "0..1")


def test_pictures_that_do_not_fit(tmp_path: Path, graphs: dict[str, Path]) -> None:
    folder = write_colours(tmp_path / "pictures", COLOUR)
    graph = picture_network(tmp_path / "g.onnx", [1, 3, 4, 5])
    with pytest.raises(
        InvalidRequest, match=r"--pixels is missing, the range of an input of float32; allowed: "
    ) as caught:
        read_picture_inputs(folder, graph, SIZE, "")
    assert all(name in str(caught.value) for name in PIXELS)
    with pytest.raises(InvalidRequest, match=r"--pixels 0-1 was given for an input of float32; allowed: 0..1, 0..255"):
        read_picture_inputs(folder, graph, SIZE, "0-1")
    with pytest.raises(
        InvalidRequest, match=r"inputs are input_ids \[1, 64\], attention_mask .*; allowed: one input of uint8"
    ):
        read_user_inputs(folder, graphs["encoder"], {}, "0..1")
    with pytest.raises(InvalidRequest, match=r"empty contains no pictures; allowed: files that end with .png"):
        read_picture_inputs(write_colours(tmp_path / "empty"), graph, SIZE, "0..1")
    (folder / "broken.png").write_text("no picture")
    with pytest.raises(InvalidRequest, match=r"broken.png"):
        read_picture_inputs(folder, graph, SIZE, "0..1")
