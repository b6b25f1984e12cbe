"""Shapes and values of inputs of a bare ONNX file, generated and read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stillhouse.accelerate.auto_acceleration.config import AutoAccelerationConfig, InputShapes
from stillhouse.accelerate.calibration.inputs import Feeds, infer_shapes, ones_inputs, plausible_inputs, read_npz_inputs
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.errors import InvalidRequest, PipelineError
from tests.accelerate import networks
from tests.accelerate.networks import NETWORKS

BACKENDS = ("onnxruntime", "openvino")
GUESSED: dict[str, dict[str, tuple[int, ...]]] = {
    "encoder": {"input_ids": (1, 64), "attention_mask": (1, 64)},  # number of positions
    "detector": {"images": (1, 3, 64, 64)},
    "denoiser": {"sample": (1, 9, 64, 64), "timestep": (1,), "encoder_hidden_states": (1, 77, 32)},
    "classifier": {"picture": (1, 224, 224, 3)},
    "external": {"images": (1, 3, 64, 64)},
    "numbered": {"0": (1, 16), "1": (1, 16)},
}
KINDS = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL}
Axis = int | str | None


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {name: build(folder / f"{name}.onnx") for name, build in NETWORKS.items()}


def identity(path: Path, inputs: Mapping[str, tuple[Sequence[Axis], int]]) -> Path:
    """A graph that returns its inputs and reveals only names, axes and types."""
    values = [helper.make_tensor_value_info(name, kind, axes) for name, (axes, kind) in inputs.items()]
    outputs = [
        helper.make_tensor_value_info(f"{name}.out", kind, [None] * len(axes)) for name, (axes, kind) in inputs.items()
    ]
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in inputs]
    model = helper.make_model(
        helper.make_graph(nodes, "identity", values, outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    path.write_bytes(model.SerializeToString())
    return path


def single_input(path: Path, name: str, axes: Sequence[Axis], kind: int = TensorProto.FLOAT) -> Path:
    return identity(path, {name: (axes, kind)})


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_guessed(graphs: dict[str, Path], name: str) -> None:
    assert infer_shapes(graphs[name]) == GUESSED[name]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_on_what_is_guessed(graphs: dict[str, Path], name: str, backend: str) -> None:
    runner = open_runner(graphs[name], backend, RunnerOptions(threads=1))
    outputs = [runner(feeds) for feeds in plausible_inputs(graphs[name], infer_shapes(graphs[name]), 3)]
    for output in outputs[0]:
        first, second, third = (tensors[output] for tensors in outputs)
        assert np.isfinite(first).all() and np.isfinite(third).all()
        assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_both_runtimes_agree_on_the_networks(graphs: dict[str, Path]) -> None:
    # Both compute in float32 in a different order: a few hundred roundings of 6e-8 on outputs of 1 to 10.
    for graph in graphs.values():
        feeds = plausible_inputs(graph, infer_shapes(graph), 1)[0]
        reference, actual = (open_runner(graph, backend, RunnerOptions(threads=1))(feeds) for backend in BACKENDS)
        for name, output in reference.items():
            np.testing.assert_allclose(actual[name], output, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "axes", "kind", "shape"),
    [
        ("x", ["batch", 3, "height", "width"], "float", (1, 3, 224, 224)),
        ("x", [None, 1, None, None], "float", (1, 1, 224, 224)),
        ("x", ["n", 16, "h", "w"], "float", (1, 16, 64, 64)),
        ("x", ["n", "c", "h", "w"], "float", (1, 3, 64, 64)),
        ("x", ["unk__1", "unk__2", "unk__3", 3], "uint8", (1, 224, 224, 3)),
        ("x", ["b", 4, "frames", "h", "w"], "float", (1, 4, 8, 64, 64)),
        ("x", [None, 4, None, 32, 32], "float", (1, 4, 8, 32, 32)),
        ("ids", ["batch_size", "sequence_length"], "int64", (1, 128)),
        ("ids", ["s0", "s1"], "int64", (1, 128)),
        ("ids", ["ids_dynamic_axes_1", "ids_dynamic_axes_2"], "int64", (1, 128)),
        ("encoder_hidden_states", ["batch", "sequence", 768], "float", (1, 77, 768)),
        ("features", [None, None, None], "float", (1, 128, 64)),
        ("t", [None], "float", (1,)),
        ("t", [], "float", ()),
        ("mask", ["batch", "past + tokens + 2"], "bool", (1, 128 + 128 + 2)),
    ],
)
def test_open_axes_by_name_and_by_place(
    tmp_path: Path, name: str, axes: Sequence[Axis], kind: str, shape: tuple[int, ...]
) -> None:
    assert infer_shapes(single_input(tmp_path / "graph.onnx", name, axes, KINDS[kind])) == {name: shape}


def test_one_name_has_one_length(graphs: dict[str, Path]) -> None:
    shapes = infer_shapes(graphs["denoiser"], overrides={"sample": (3, 9, 16, 8)})
    assert shapes == {"sample": (3, 9, 16, 8), "timestep": (3,), "encoder_hidden_states": (3, 77, 32)}
    config = AutoAccelerationConfig(inputs={"timestep": InputShapes((1,), (2,), (4,))})
    assert infer_shapes(graphs["denoiser"], config)["sample"] == (2, 9, 64, 64)
    assert infer_shapes(graphs["denoiser"], config, {"timestep": (5,)})["sample"] == (5, 9, 64, 64)


def test_a_sum_is_one_length_too(tmp_path: Path) -> None:
    int64 = TensorProto.INT64
    graph = identity(tmp_path / "graph.onnx", {"ids": (["tokens"], int64), "mask": (["batch", "past + tokens"], int64)})
    assert infer_shapes(graph, overrides={"ids": (5,)}) == {"ids": (5,), "mask": (1, 128 + 5)}
    assert infer_shapes(graph, overrides={"mask": (2, 9)}) == {"ids": (128,), "mask": (2, 9)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"smaple": (1,)}, r"there is no input 'smaple'; .* did you mean 'sample'\?"),
        ({"sample": (1, 9, 8)}, r"input 'sample' has shape \[1, 9, 8\]"),
        ({"sample": (1, 9, 8, 8), "timestep": (2,)}, r"input 'timestep' has shape \[2\]; .* one length for each"),
    ],
)
def test_shapes_that_do_not_fit(graphs: dict[str, Path], overrides: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        infer_shapes(graphs["denoiser"], overrides=overrides)


AXES = st.lists(
    st.one_of(st.integers(1, 6), st.sampled_from(["batch", "h", "x", "x + 1", "unk__3"]), st.none()), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_axes_the_inputs_fit_them(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "timestep", "sigma", "time_ids", "x", "0"]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    kinds = st.sampled_from([*KINDS.values(), TensorProto.FLOAT16, TensorProto.INT32, TensorProto.DOUBLE])
    inputs = {name: (data.draw(AXES), data.draw(kinds)) for name in chosen}
    graph = identity(tmp_path_factory.mktemp("axes") / "graph.onnx", inputs)
    shapes = infer_shapes(graph)
    for feeds in plausible_inputs(graph, shapes, 2, seed=data.draw(st.integers(0, 2**32))):
        for name, (axes, kind) in inputs.items():
            assert feeds[name].dtype == helper.tensor_dtype_to_np_dtype(kind)
            assert feeds[name].shape == shapes[name]
            assert all(axis == length for axis, length in zip(axes, shapes[name], strict=True) if isinstance(axis, int))
            assert feeds[name].dtype.kind == "b" or np.isfinite(feeds[name]).all()
            assert feeds[name].flags.c_contiguous


def generated(path: Path, name: str, shape: tuple[int, ...], kind: str, count: int = 8) -> list[NDArray[Any]]:
    graph = single_input(path / "graph.onnx", name, shape, KINDS[kind])
    return [feeds[name] for feeds in plausible_inputs(graph, {name: shape}, count)]


def test_ids_are_rows_of_their_table(graphs: dict[str, Path]) -> None:
    shapes = {"input_ids": (16, 64), "attention_mask": (16, 64)}
    ids = np.stack([feeds["input_ids"] for feeds in plausible_inputs(graphs["encoder"], shapes, 8)])
    # 8192 draws of 1000 rows miss the top tenth with a probability of 0.9**8192.
    assert (
        0 <= ids.min() < networks.VOCABULARY // 10 and networks.VOCABULARY * 9 // 10 <= ids.max() < networks.VOCABULARY
    )


def test_ids_without_a_table_stay_small(tmp_path: Path) -> None:
    assert all(0 <= ids.min() <= ids.max() < 8 for ids in generated(tmp_path, "input_ids", (4, 50), "int64"))


def test_ids_reach_their_table_through_other_nodes(tmp_path: Path) -> None:
    net = networks.GraphBuilder(0)
    flat = net.add_node("Reshape", net.add_node("Cast", "words", to=TensorProto.INT32), net.constant(np.array([-1])))
    net.add_node("Gather", net.add_node("Cast", net.weight(37, 8), to=TensorProto.FLOAT16), flat, out="y")
    graph = net.write_model(
        tmp_path / "graph.onnx", [("words", [4, 50], TensorProto.INT64)], [("y", [200, 8], TensorProto.FLOAT16)]
    )
    feeds = plausible_inputs(graph, {"words": (4, 50)}, 4)
    assert max(each["words"].max() for each in feeds) == 36


@pytest.mark.parametrize("kind", ["int64", "bool", "float"])
def test_masks_end_in_tails_of_their_own(tmp_path: Path, kind: str) -> None:
    first, *others = generated(tmp_path, "attention_mask", (4, 64), kind)
    assert first.all()
    for mask in others:
        assert np.isin(mask, [0, 1]).all()
        lengths = mask.sum(axis=1)
        assert np.array_equal(mask, np.arange(64) < lengths[:, None])
        assert lengths.min() >= 32
    assert len({mask.tobytes() for mask in others}) == len(others)


def test_a_mask_with_more_axes_is_added_to_scores(tmp_path: Path) -> None:
    first, second, *_ = generated(tmp_path, "attention_mask", (2, 1, 16, 16), "float")
    assert not first.any()
    assert set(np.unique(second)) == {-1e4, 0.0}
    assert np.isfinite(second.astype(np.float16)).all()


def test_a_mask_of_a_picture_is_a_rectangle(tmp_path: Path) -> None:
    for mask in generated(tmp_path, "mask", (1, 1, 16, 16), "float"):
        assert mask.sum() == 64 and np.isin(mask, [0, 1]).all()


@pytest.mark.parametrize(
    ("name", "want"),
    [("token_type_ids", np.zeros((2, 9))), ("position_ids", np.tile(np.arange(9), (2, 1)))],
)
def test_ids_that_follow_from_the_shape(tmp_path: Path, name: str, want: NDArray[Any]) -> None:
    assert all(np.array_equal(ids, want) for ids in generated(tmp_path, name, (2, 9), "int64"))


@pytest.mark.parametrize("kind", ["int64", "float"])
def test_timesteps_are_spread(tmp_path: Path, kind: str) -> None:
    steps = np.stack(generated(tmp_path, "timestep", (2,), kind, count=5)).ravel()
    assert np.array_equal(np.sort(steps), np.linspace(0, 999, 10))
    assert generated(tmp_path, "timestep", (), kind, count=1) == [499]


@pytest.mark.parametrize("shape", [(1, 32, 48, 3), (1, 3, 32, 48), (32, 48, 3)])
def test_bytes_of_three_axes_are_smooth_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for picture in generated(tmp_path, "image", shape, "uint8"):
        assert (picture.min(), picture.max()) == (0, 255)
        moved = (
            picture.astype(float).reshape(32, 48, 3) if shape[-1] == 3 else picture[0].transpose(1, 2, 0).astype(float)
        )
        # From pixel to pixel, noise would change by 85 in the mean, and three periods over 32 pixels change less.
        assert np.abs(np.diff(moved, axis=0)).mean() < 25 and np.abs(np.diff(moved, axis=1)).mean() < 25


def test_latents_go_from_noise_to_picture(tmp_path: Path) -> None:
    latents = generated(tmp_path, "sample", (1, 4, 64, 64), "float")
    steps = [float(np.diff(latent, axis=-1).std()) for latent in latents]
    assert steps == sorted(steps, reverse=True)
    # The difference of two independent standard normals has the deviation sqrt 2; of 16128, known to 1 percent.
    assert steps[0] == pytest.approx(2**0.5, rel=0.03)
    for latent in latents:
        assert latent.std() == pytest.approx(1, rel=0.05)


def test_vectors_differ_in_scale(tmp_path: Path) -> None:
    scales = [vector.std() for vector in generated(tmp_path, "hidden", (1, 77, 64), "float")]
    assert scales[0] == pytest.approx(1, rel=0.05)
    assert min(scales) > 0.45 and max(scales) < 2.2 and max(scales) / min(scales) > 1.5


def test_the_seed_decides(graphs: dict[str, Path]) -> None:
    shapes = infer_shapes(graphs["denoiser"])

    def sample(count: int, seed: int) -> NDArray[Any]:
        return plausible_inputs(graphs["denoiser"], shapes, count, seed)[0]["sample"]

    assert np.array_equal(sample(2, 7), sample(2, 7))
    assert np.array_equal(sample(2, 7), sample(5, 7))
    assert not np.array_equal(sample(2, 7), sample(2, 8))


def test_inputs_of_one_shape_differ(graphs: dict[str, Path]) -> None:
    feeds = plausible_inputs(graphs["numbered"], infer_shapes(graphs["numbered"]), 1)[0]
    assert not np.array_equal(feeds["0"], feeds["1"])


def test_no_values_for_text(tmp_path: Path) -> None:
    graph = single_input(tmp_path / "graph.onnx", "words", [1], TensorProto.STRING)
    with pytest.raises(
        InvalidRequest, match=r"input 'words' has the element type object, for which no values can be generated"
    ):
        plausible_inputs(graph, {"words": (1,)}, 1)


def test_shapes_must_be_whole(graphs: dict[str, Path]) -> None:
    with pytest.raises(InvalidRequest, match=r"shapes are missing for attention_mask; allowed: a shape for each input"):
        plausible_inputs(graphs["encoder"], {"input_ids": (1, 8)}, 1)
    with pytest.raises(InvalidRequest, match=r"the number of inputs is 0; allowed: a whole number from 1"):
        plausible_inputs(graphs["numbered"], {"0": (1, 16), "1": (1, 16)}, 0)


@pytest.mark.parametrize("read", [infer_shapes, lambda graph: read_npz_inputs(graph.with_suffix(".npz"), graph)])
def test_a_graph_that_is_none(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "graph.onnx"
    with pytest.raises(PipelineError, match=r"there is no file .*graph.onnx"):
        read(path)
    whole = networks.detector(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PipelineError, match=r"graph.onnx is no ONNX graph, or is cut short"):
        read(path)


def test_an_initializer_that_is_listed_as_an_input_is_not_fed(tmp_path: Path) -> None:
    """As with `keep_initializers_as_inputs`, which Auto-Acceleration's tutorial exports with."""
    path = networks.numbered(tmp_path / "numbered.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    path.write_bytes(model.SerializeToString())
    assert infer_shapes(path) == GUESSED["numbered"]


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


# Faults of Auto-Acceleration that concern the inputs of a network; see test_config.py.


def test_fault_02_inputs_are_not_all_ones(graphs: dict[str, Path]) -> None:
    """Auto-Acceleration probed with ones only, on which wrong networks may look right."""
    shapes = infer_shapes(graphs["denoiser"])
    (old,) = ones_inputs(graphs["denoiser"], shapes)
    assert all((array == 1).all() for array in old.values())
    assert {name: array.dtype.name for name, array in old.items()} == {
        "sample": "float32",
        "timestep": "int64",
        "encoder_hidden_states": "float32",
    }
    for feeds in plausible_inputs(graphs["denoiser"], shapes, 4):
        assert feeds["sample"].std() > 0.5 and feeds["encoder_hidden_states"].std() > 0.4


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_03_floats_and_whole_numbers_together(graphs: dict[str, Path], backend: str) -> None:
    """Auto-Acceleration chose one type for all inputs and crashed on an int64 timestep."""
    feeds = plausible_inputs(graphs["denoiser"], infer_shapes(graphs["denoiser"]), 1)[0]
    assert {array.dtype.name for array in feeds.values()} == {"float32", "int64"}
    runner = open_runner(graphs["denoiser"], backend, RunnerOptions(threads=1))
    assert np.isfinite(runner(feeds)["out_sample"]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_14_inputs_are_fed_by_name(graphs: dict[str, Path], backend: str) -> None:
    """Auto-Acceleration passed inputs in the order of the config."""
    feeds = plausible_inputs(graphs["numbered"], infer_shapes(graphs["numbered"]), 1)[0]
    runner = open_runner(graphs["numbered"], backend, RunnerOptions(threads=1))
    assert np.array_equal(runner(dict(reversed(feeds.items())))["5"], runner(feeds)["5"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_15_opsets_above_16(tmp_path: Path, backend: str) -> None:
    """Auto-Acceleration supported no opset above 16."""
    net = networks.GraphBuilder(0)
    net.add_node("Gelu", net.linear("x", 16, 16), out="y")
    value: list[Axis] = ["n", 16]
    graph = net.write_model(
        tmp_path / "graph.onnx", [("x", value, networks.FLOAT)], [("y", value, networks.FLOAT)], opset=20
    )
    feeds = plausible_inputs(graph, infer_shapes(graph), 1)[0]
    assert np.isfinite(open_runner(graph, backend, RunnerOptions(threads=1))(feeds)["y"]).all()
