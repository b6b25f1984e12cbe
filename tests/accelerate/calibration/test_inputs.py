"""Shapes and values of generated inputs of a bare ONNX file."""

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
from stillhouse.accelerate.calibration.inputs import (
    COMPANIONS,
    infer_shapes,
    ones_inputs,
    plausible_inputs,
    read_user_inputs,
)
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
    outputs = [runner(feeds) for feeds in plausible_inputs(graphs[name], infer_shapes(graphs[name]), 3).sets]
    for output in outputs[0]:
        first, second, third = (tensors[output] for tensors in outputs)
        assert np.isfinite(first).all() and np.isfinite(third).all()
        assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_both_runtimes_agree_on_the_networks(graphs: dict[str, Path]) -> None:
    # Both compute in float32 in a different order: a few hundred roundings of 6e-8 on outputs of 1 to 10.
    for graph in graphs.values():
        feeds = plausible_inputs(graph, infer_shapes(graph), 1).sets[0]
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
        ("past", [1, 4, "past_length", 16], "float", (1, 4, 16, 16)),
        ("past_key_values.0.key", [None, 4, None, 16], "float", (1, 4, 16, 16)),
        ("waveform", [None, None], "float", (1, 16000)),
        ("state", [2, None, 128], "float", (2, 1, 128)),
        ("mask", ["batch", "past + tokens + 2"], "bool", (1, 16 + 128 + 2)),
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
    assert infer_shapes(graph, overrides={"ids": (5,)}) == {"ids": (5,), "mask": (1, 16 + 5)}
    assert infer_shapes(graph, overrides={"mask": (2, 9)}) == {"ids": (128,), "mask": (2, 9)}


@pytest.mark.parametrize(
    ("metadata", "output", "side"),
    [
        ({"imgsz": "[320, 416]"}, [1, 5, "anchors"], (320, 416)),
        ({"imgsz": "640"}, [1, 5, 2100], (640, 640)),
        ({"names": "{0: 'person 320'}"}, [1, 84, "anchors"], (224, 224)),
        ({"character": "a\nb\nc"}, [1, "columns", 3], (48, 320)),  # of a line of text, as PaddleOCR reads
        ({}, [1, 84, 8400], (640, 640)),  # 80 * 80 + 40 * 40 + 20 * 20
        ({}, [1, 5, 2100], (320, 320)),
        ({}, [1, 25200, 85], (640, 640)),  # three boxes for each cell
        ({}, [1, 3598, 112], (416, 416)),  # with cells of 64 pixels as well: 52 * 52 + 26 * 26 + 13 * 13 + 7 * 7
        ({}, [1, 1000], (224, 224)),
        ({}, [1, 197, 768], (224, 224)),
    ],
)
def test_files_tell_for_which_pictures_they_were_made(
    tmp_path: Path, metadata: dict[str, str], output: list[Axis], side: tuple[int, int]
) -> None:
    path = single_input(tmp_path / "graph.onnx", "images", ["n", 3, "h", "w"])
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("images.out", TensorProto.FLOAT, output))
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    assert infer_shapes(path) == {"images": (1, 3, *side)}
    assert infer_shapes(path, overrides={"images": (1, 3, 96, 96)}) == {"images": (1, 3, 96, 96)}


def test_a_total_is_the_sum_of_past_and_present(tmp_path: Path) -> None:
    int64 = TensorProto.INT64
    inputs: dict[str, tuple[Sequence[Axis], int]] = {
        "attention_mask": (["batch", "total_sequence_length"], int64),
        "ids": (["batch", "sequence_length"], int64),
        "past": (["batch", 2, "past_sequence_length", 4], TensorProto.FLOAT),
    }
    graph = identity(tmp_path / "graph.onnx", inputs)
    assert infer_shapes(graph)["attention_mask"] == (1, 16 + 128)
    shapes = infer_shapes(graph, overrides={"ids": (1, 7), "past": (1, 2, 0, 4)})
    assert shapes == {"attention_mask": (1, 7), "ids": (1, 7), "past": (1, 2, 0, 4)}


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
    for feeds in plausible_inputs(graph, shapes, 2, seed=data.draw(st.integers(0, 2**32))).sets:
        for name, (axes, kind) in inputs.items():
            assert feeds[name].dtype == helper.tensor_dtype_to_np_dtype(kind)
            assert feeds[name].shape == shapes[name]
            assert all(axis == length for axis, length in zip(axes, shapes[name], strict=True) if isinstance(axis, int))
            assert feeds[name].dtype.kind == "b" or np.isfinite(feeds[name]).all()
            assert feeds[name].flags.c_contiguous


def generated(path: Path, name: str, shape: tuple[int, ...], kind: str, count: int = 8) -> list[NDArray[Any]]:
    graph = single_input(path / "graph.onnx", name, shape, KINDS[kind])
    return [feeds[name] for feeds in plausible_inputs(graph, {name: shape}, count).sets]


def test_ids_are_rows_of_their_table(graphs: dict[str, Path]) -> None:
    shapes = {"input_ids": (16, 64), "attention_mask": (16, 64)}
    ids = np.stack([feeds["input_ids"] for feeds in plausible_inputs(graphs["encoder"], shapes, 8).sets])
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
    feeds = plausible_inputs(graph, {"words": (4, 50)}, 4).sets
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
        return plausible_inputs(graphs["denoiser"], shapes, count, seed).sets[0]["sample"]

    assert np.array_equal(sample(2, 7), sample(2, 7))
    assert np.array_equal(sample(2, 7), sample(5, 7))
    assert not np.array_equal(sample(2, 7), sample(2, 8))


def test_inputs_of_one_shape_differ(graphs: dict[str, Path]) -> None:
    feeds = plausible_inputs(graphs["numbered"], infer_shapes(graphs["numbered"]), 1).sets[0]
    assert not np.array_equal(feeds["0"], feeds["1"])


def test_no_values_for_text(tmp_path: Path) -> None:
    graph = single_input(tmp_path / "graph.onnx", "words", [1], TensorProto.STRING)
    model = onnx.load(graph)
    model.graph.node.append(helper.make_node("Shape", ["words"], ["count"]))
    model.graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT64, [1]))
    onnx.save(model, graph)
    with pytest.raises(
        InvalidRequest, match=r"input 'words' has the element type object, for which no values can be generated"
    ):
        plausible_inputs(graph, {"words": (1,)}, 1)


def test_shapes_must_be_whole(graphs: dict[str, Path]) -> None:
    with pytest.raises(InvalidRequest, match=r"shapes are missing for attention_mask; allowed: a shape for each input"):
        plausible_inputs(graphs["encoder"], {"input_ids": (1, 8)}, 1)
    with pytest.raises(InvalidRequest, match=r"the number of inputs is 0; allowed: a whole number from 1"):
        plausible_inputs(graphs["numbered"], {"0": (1, 16), "1": (1, 16)}, 0)


@pytest.mark.parametrize(
    "read", [infer_shapes, lambda graph: read_user_inputs(graph.with_suffix(".npz"), graph, shapes={})]
)
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


def table(path: Path, rows: int, inputs: Mapping[str, tuple[Sequence[Axis], int]], ids: str) -> Path:
    """A graph that looks up the input `ids` in a table, and returns all other inputs."""
    net = networks.GraphBuilder(0)
    net.add_node("Gather", net.weight(rows, 4), ids, out=f"{ids}.out")
    for name in inputs:
        if name != ids:
            net.add_node("Identity", name, out=f"{name}.out")
    values = [(name, axes, kind) for name, (axes, kind) in inputs.items()]
    outputs = [
        (f"{name}.out", [None] * (len(axes) + (name == ids)), TensorProto.FLOAT if name == ids else kind)
        for name, axes, kind in values
    ]
    return net.write_model(path, values, outputs)


@pytest.mark.parametrize(
    ("inputs", "kinds"),
    [
        ({"image": ([1, 32, 48, 3], "uint8")}, {"image": "photograph"}),
        ({"image": ([1, 3, 32, 48], "uint8")}, {"image": "photograph"}),
        ({"image": ([1, 3, 32, 48], "float")}, {"image": "made-up"}),
        ({"bytes": ([1, 2, 5], "uint8")}, {"bytes": "made-up"}),
        ({"waveform": ([1, 400], "float")}, {"waveform": "audio"}),
        ({"input": (["n", "time"], "float"), "sr": ([], "int64")}, {"input": "audio", "sr": "sampling rate"}),
        ({"input": ([1, 400], "float")}, {"input": "made-up"}),
        ({"audio_features": ([1, 80, 400], "float")}, {"audio_features": "made-up"}),
        ({"audio_signal": ([1, 80, 400], "float")}, {"audio_signal": "made-up"}),
        ({"input_ids": ([1, 8], "int64")}, {"input_ids": "made-up"}),
        (
            {"sample": ([1, 4, 8, 8], "float"), "timestep": ([1], "int64"), "flag": ([], "bool")},
            {"sample": "made-up", "timestep": "timestep", "flag": "switch"},
        ),
        ({"attention_mask": ([1, 8], "int64")}, {"attention_mask": "mask"}),
    ],
)
def test_kinds_follow_from_names_and_types(
    tmp_path: Path, inputs: Mapping[str, tuple[Sequence[Axis], str]], kinds: dict[str, str]
) -> None:
    graph = identity(tmp_path / "graph.onnx", {name: (axes, KINDS[kind]) for name, (axes, kind) in inputs.items()})
    generated = plausible_inputs(graph, infer_shapes(graph), 2)
    assert generated.kinds == kinds
    assert generated.is_real_looking == bool({"photograph", "tokens", "audio"} & set(kinds.values()))


def test_companions_of_tokens_are_not_made_up(tmp_path: Path) -> None:
    whole = TensorProto.INT64
    names = ["ids", "attention_mask", "token_type_ids", "position_ids", "lengths"]
    axes: dict[str, list[Axis]] = {name: ["n"] if name == "lengths" else ["n", "tokens"] for name in names}
    graph = table(tmp_path / "graph.onnx", 50, {name: (axes[name], whole) for name in names}, "ids")
    generated = plausible_inputs(graph, infer_shapes(graph), 3)
    assert generated.kinds["ids"] == "tokens" and set(generated.kinds.values()) - {"tokens"} <= COMPANIONS
    assert generated.is_real_looking
    assert all(feeds["lengths"] == [128] for feeds in generated.sets)


def test_made_up_inputs_beside_real_ones_are_not_real(tmp_path: Path) -> None:
    inputs: dict[str, tuple[Sequence[Axis], int]] = {
        "ids": ([1, 8], TensorProto.INT64),
        "features": ([1, 8], TensorProto.FLOAT),
    }
    generated = plausible_inputs(
        table(tmp_path / "graph.onnx", 50, inputs, "ids"), {"ids": (1, 8), "features": (1, 8)}, 2
    )
    assert generated.kinds == {"ids": "tokens", "features": "made-up"} and not generated.is_real_looking


def test_ids_follow_zipf(tmp_path: Path) -> None:
    rows, length = 50, 128
    graph = table(tmp_path / "graph.onnx", rows, {"ids": ([64, length], TensorProto.INT64)}, "ids")
    ids = np.stack([feeds["ids"] for feeds in plausible_inputs(graph, {"ids": (64, length)}, 8).sets])
    ends = [(1, 2), (0, 2), (2, 3)]  # those of other tokenizers, BERT's apart, which a table of 50 rows does not have
    assert [{*map(tuple, of_set[:, [0, -1]].tolist())} for of_set in ids] == [{ends[n % 3]} for n in range(8)]
    counts = np.sort(np.bincount(ids[..., 1:-1].ravel(), minlength=rows))[::-1]
    expected = 1 / np.arange(1, rows + 1)
    # 64512 draws; the rarest row comes 287 times, give or take 17, so that 25 percent are four deviations.
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), rtol=0.25)


def test_texts_end_where_their_mask_ends(graphs: dict[str, Path]) -> None:
    shapes = {"input_ids": (4, 64), "attention_mask": (4, 64)}
    sets = plausible_inputs(graphs["encoder"], shapes, 4).sets
    for feeds, (first, last) in zip(sets, [(1, 2), (101, 102), (0, 2), (2, 3)], strict=True):
        for ids, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True):
            end = mask.sum()
            assert ids[0] == first and ids[end - 1] == last and not ids[end:].any()


def test_float_pictures_are_normalised_photographs_and_latents_are_not(tmp_path: Path) -> None:
    for picture in generated(tmp_path, "image", (1, 3, 64, 96), "float", count=4):
        scale = np.reshape([0.229, 0.224, 0.225], (3, 1, 1)) * 255
        pixels = picture[0] * scale + np.reshape([0.485, 0.456, 0.406], (3, 1, 1)) * 255
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
        assert pixels.min() == pytest.approx(0, abs=1e-3) and pixels.max() == pytest.approx(255, abs=1e-3)
    # The first latent is pure noise, whose neighbours differ by sqrt 2 deviations.
    assert np.diff(generated(tmp_path, "image", (1, 4, 64, 96), "float")[0]).std() == pytest.approx(2**0.5, rel=0.03)


@pytest.mark.parametrize(("metadata", "low"), [({"author": "Ultralytics"}, 0), ({"character": "a\nb"}, -1)])
def test_pictures_of_a_known_range_are_photographs(tmp_path: Path, metadata: dict[str, str], low: float) -> None:
    graph = single_input(tmp_path / "graph.onnx", "images", [1, 3, 32, 64])
    model = onnx.load(graph)
    helper.set_model_props(model, metadata)
    graph.write_bytes(model.SerializeToString())
    generated = plausible_inputs(graph, infer_shapes(graph), 3)
    assert generated.kinds == {"images": "photograph"} and generated.is_real_looking
    assert all((feeds["images"].min(), feeds["images"].max()) == (low, 1) for feeds in generated.sets)


def test_pictures_of_a_denoiser_go_from_noise_to_picture(tmp_path: Path) -> None:
    inputs: dict[str, tuple[Sequence[Axis], int]] = {
        "sample": ([1, 3, 64, 64], TensorProto.FLOAT),
        "timestep": ([1], TensorProto.INT64),
    }
    graph = identity(tmp_path / "graph.onnx", inputs)
    sets = plausible_inputs(graph, infer_shapes(graph), 4).sets
    steps = [float(np.diff(feeds["sample"]).std()) for feeds in sets]
    assert steps == sorted(steps, reverse=True) and steps[0] == pytest.approx(2**0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["float", "int16"])
def test_sounds_are_within_their_range(tmp_path: Path, kind: str) -> None:
    kinds = {"float": TensorProto.FLOAT, "int16": TensorProto.INT16}
    graph = single_input(tmp_path / "graph.onnx", "wav", [2, 800], kinds[kind])
    most = 1 if kind == "float" else 2**15 - 1
    rows = [row for feeds in plausible_inputs(graph, {"wav": (2, 800)}, 4).sets for row in feeds["wav"]]
    assert all(0.29 * most < np.abs(row.astype(float)).max() < 0.91 * most for row in rows)
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_a_state_begins_at_zero_and_stays_within_one(tmp_path: Path) -> None:
    first, *others = generated(tmp_path, "state", (2, 1, 128), "float")
    assert not first.any()
    assert all(0.2 < np.abs(state).mean() < 1 and np.abs(state).max() < 1 for state in others)


def recurrent(path: Path, returned: str) -> Path:
    """Halves x and adds it to the state, which is returned under a name of choice."""
    net = networks.GraphBuilder(0)
    half = net.constant(np.array(0.5, np.float32))
    net.add_node("Add", "state", net.add_node("Mul", "waveform", half), out=returned)
    value = [2, 400]
    inputs: list[networks.ValueInfo] = [("waveform", value, TensorProto.FLOAT), ("state", value, TensorProto.FLOAT)]
    return net.write_model(path, inputs, [(returned, value, TensorProto.FLOAT)])


def test_a_state_is_what_the_network_returned_before(tmp_path: Path) -> None:
    graph = recurrent(tmp_path / "graph.onnx", "stateN")
    run = open_runner(graph, "onnxruntime", RunnerOptions(threads=1))
    generated = plausible_inputs(graph, infer_shapes(graph), 4, run=run)
    assert generated.kinds == {"waveform": "audio", "state": "state"} and generated.is_real_looking
    sounds = np.stack([feeds["waveform"] for feeds in generated.sets])
    states = np.stack([feeds["state"] for feeds in generated.sets])
    assert not states[0].any()
    np.testing.assert_allclose(states[1:], np.cumsum(sounds, axis=0)[:-1] / 2, atol=1e-6)


def test_a_state_that_is_not_returned_is_made_up(tmp_path: Path) -> None:
    graph = recurrent(tmp_path / "graph.onnx", "y")
    run = open_runner(graph, "onnxruntime", RunnerOptions(threads=1))
    generated = plausible_inputs(graph, infer_shapes(graph), 2, run=run)
    assert generated.kinds["state"] == "made-up" and not generated.is_real_looking


@pytest.mark.parametrize(
    ("axes", "kernel", "kind"),
    [
        (["n", "samples"], (16, 1, 400), "audio"),
        (["n", "samples"], (16, 1, 3), "made-up"),
        ([1, 1, 800], (16, 1, 400), "audio"),
        ([1, 800, 1], (16, 1, 400), "audio"),
        ([1, 80, 800], (16, 80, 9), "made-up"),
    ],
)
def test_a_convolution_of_one_channel_reads_sound(
    tmp_path: Path, axes: list[Axis], kernel: tuple[int, int, int], kind: str
) -> None:
    net = networks.GraphBuilder(0)
    shape = net.constant(np.array([1, kernel[1], -1]))
    net.add_node("Conv", net.add_node("Reshape", "x", shape), net.weight(*kernel), out="y")
    outputs: list[networks.ValueInfo] = [("y", [None] * 3, TensorProto.FLOAT)]
    graph = net.write_model(tmp_path / "g.onnx", [("x", axes, TensorProto.FLOAT)], outputs)
    shapes = infer_shapes(graph)
    if isinstance(axes[1], str):
        assert shapes == {"x": (1, 16_000 if kind == "audio" else 128)}
    generated = plausible_inputs(graph, shapes, 2)
    assert generated.kinds == {"x": kind}
    assert generated.sets[0]["x"].shape == shapes["x"]


def test_ids_reach_a_table_that_is_stored_in_int8(tmp_path: Path) -> None:
    net = networks.GraphBuilder(0)
    stored = net.add_node("Cast", net.constant(np.ones((37, 8), np.int8)), to=TensorProto.FLOAT)
    scaled = net.add_node("Mul", stored, net.constant(np.ones((37, 1), np.float32)))
    net.add_node("Gather", scaled, "ids", out="y")
    ids: list[networks.ValueInfo] = [("ids", [4, 50], TensorProto.INT64)]
    graph = net.write_model(tmp_path / "g.onnx", ids, [("y", [4, 50, 8], TensorProto.FLOAT)])
    generated = plausible_inputs(graph, infer_shapes(graph), 4)
    assert generated.kinds == {"ids": "tokens"} and max(feeds["ids"].max() for feeds in generated.sets) == 36


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["uint8", "float"]),
    channels=st.sampled_from([1, 3, 4]),
    sides=st.tuples(st.integers(8, 200), st.integers(8, 200)),
)
def test_sets_of_pictures_differ(
    tmp_path_factory: pytest.TempPathFactory, kind: str, channels: int, sides: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    pictures = generated(folder, "image", (1, channels, *sides), kind, count=12)
    assert len({picture.tobytes() for picture in pictures}) == 12


def test_an_empty_cache_is_generated_as_empty(tmp_path: Path) -> None:
    graph = single_input(tmp_path / "graph.onnx", "past", [1, 4, 0, 16])
    assert infer_shapes(graph) == {"past": (1, 4, 0, 16)}
    assert [feeds["past"].shape for feeds in plausible_inputs(graph, {"past": (1, 4, 0, 16)}, 2).sets] == [
        (1, 4, 0, 16)
    ] * 2


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
    for feeds in plausible_inputs(graphs["denoiser"], shapes, 4).sets:
        assert feeds["sample"].std() > 0.5 and feeds["encoder_hidden_states"].std() > 0.4


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_03_floats_and_whole_numbers_together(graphs: dict[str, Path], backend: str) -> None:
    """Auto-Acceleration chose one type for all inputs and crashed on an int64 timestep."""
    feeds = plausible_inputs(graphs["denoiser"], infer_shapes(graphs["denoiser"]), 1).sets[0]
    assert {array.dtype.name for array in feeds.values()} == {"float32", "int64"}
    runner = open_runner(graphs["denoiser"], backend, RunnerOptions(threads=1))
    assert np.isfinite(runner(feeds)["out_sample"]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_14_inputs_are_fed_by_name(graphs: dict[str, Path], backend: str) -> None:
    """Auto-Acceleration passed inputs in the order of the config."""
    feeds = plausible_inputs(graphs["numbered"], infer_shapes(graphs["numbered"]), 1).sets[0]
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
    feeds = plausible_inputs(graph, infer_shapes(graph), 1).sets[0]
    assert np.isfinite(open_runner(graph, backend, RunnerOptions(threads=1))(feeds)["y"]).all()


def test_boxes_belong_to_the_first_picture(tmp_path: Path) -> None:
    net = networks.GraphBuilder(0)
    net.add_node("RoiAlign", "image", "rois", "which", out="y", output_height=2, output_width=2)
    inputs: list[networks.ValueInfo] = [
        ("image", [1, 3, 32, 32], networks.FLOAT),
        ("rois", ["boxes", 4], networks.FLOAT),
        ("which", ["boxes"], TensorProto.INT64),
    ]
    graph = net.write_model(tmp_path / "graph.onnx", inputs, [("y", ["boxes", 3, 2, 2], networks.FLOAT)])
    generated = plausible_inputs(graph, infer_shapes(graph), 2)
    assert generated.kinds["which"] == "row numbers"
    assert all(open_runner(graph)(feeds)["y"].shape == (16, 3, 2, 2) for feeds in generated.sets)


@pytest.mark.parametrize("axis", ["points", "num_boxes", "candidates"])
def test_a_set_of_items_has_several(tmp_path: Path, axis: str) -> None:
    """A network may compare items with one another, and one item would show nothing of that."""
    net = networks.GraphBuilder(0)
    net.add_node("Relu", "x", out="y")
    graph = net.write_model(
        tmp_path / "graph.onnx", [("x", [axis, 4], networks.FLOAT)], [("y", [axis, 4], networks.FLOAT)]
    )
    assert infer_shapes(graph) == {"x": (16, 4)}


@pytest.mark.parametrize("kind", ["Log", "Sqrt"])
def test_features_of_which_a_logarithm_or_a_root_is_taken_are_positive(tmp_path: Path, kind: str) -> None:
    net = networks.GraphBuilder(0)
    net.add_node(kind, net.add_node("Squeeze", "x"), out="y")
    values: list[networks.ValueInfo] = [("x", [1, 40, 64], networks.FLOAT)]
    graph = net.write_model(tmp_path / "graph.onnx", values, [("y", [40, 64], networks.FLOAT)])
    sets = plausible_inputs(graph, infer_shapes(graph), 3).sets
    assert all(np.isfinite(open_runner(graph)(feeds)["y"]).all() and feeds["x"].std() > 0.2 for feeds in sets)


@pytest.mark.parametrize("name", ["lengths", "count"])
def test_lengths_of_rows_count_time_where_time_comes_first(tmp_path: Path, name: str) -> None:
    net = networks.GraphBuilder(0)
    net.add_node(
        "RNN", "x", net.weight(1, 8, 4), net.weight(1, 8, 8), net.constant(np.zeros((1, 16), np.float32)), name
    )
    net.nodes[-1].attribute.append(helper.make_attribute("hidden_size", 8))
    output = net.nodes[-1].output[0]
    inputs: list[networks.ValueInfo] = [("x", ["time", "n", 4], networks.FLOAT), (name, ["n"], TensorProto.INT32)]
    graph = net.write_model(tmp_path / "rnn.onnx", inputs, [(output, ["time", 1, "n", 8], networks.FLOAT)])
    generated = plausible_inputs(graph, infer_shapes(graph), 2)
    assert generated.kinds[name] == "length"
    assert all(feeds[name].tolist() == [128] and feeds["x"].shape == (128, 1, 4) for feeds in generated.sets)


def test_the_axis_of_a_scan_is_time_and_no_batch(tmp_path: Path) -> None:
    """One step would show nothing of a recurrent network."""
    state, step = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("state", "step"))
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "step"], ["next"]), helper.make_node("Tanh", ["next"], ["out"])],
        "body",
        [state, step],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("next", "out")],
    )
    scan = helper.make_node("Scan", ["h0", "x"], ["hn", "y"], body=body, num_scan_inputs=1)
    inputs = [
        helper.make_tensor_value_info("h0", TensorProto.FLOAT, [1, 8]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", 1, 8]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("hn", "y")]
    path = tmp_path / "scan.onnx"
    onnx.save_model(helper.make_model(helper.make_graph([scan], "scan", inputs, outputs)), path)
    assert infer_shapes(path) == {"h0": (1, 8), "x": (128, 1, 8)}
