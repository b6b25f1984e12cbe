"""A U-Net's graph in two depths: what the shallow one makes of the full one's features is what the full one makes."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from stillhouse.backends import RunnerOptions, open_runner
from stillhouse.backends.deepcache_split import DEEP_TENSOR, DeepCacheSplit, split_denoiser
from stillhouse.backends.signature import read_signature
from stillhouse.errors import InvalidRequest, PipelineError
from tests.backends.networks import BACKENDS, make_model, node, unet, write_model

EMBEDDED = Path(__file__).parents[2] / "src/stillhouse/shapes/weights/unet"
KINDS = ("sd1", "sd2", "xl", "inpaint", "embedded")

CutOf = Callable[..., tuple[Path, DeepCacheSplit]]


@pytest.fixture(scope="module")
def cut_of(tmp_path_factory: pytest.TempPathFactory) -> CutOf:
    """A graph and what it was cut into, by kind and layer; made at the first call."""
    root, made = tmp_path_factory.mktemp("cuts"), dict[tuple[str, int], DeepCacheSplit]()

    def find(kind: str, layer: int = 0) -> tuple[Path, DeepCacheSplit]:
        graph = root / kind / "model.onnx"
        if not graph.exists():
            _write_unet(kind, graph.parent)
        if (kind, layer) not in made:
            made[kind, layer] = split_denoiser(graph, layer)
        return graph, made[kind, layer]

    return find


def _write_unet(kind: str, directory: Path) -> None:
    if kind == "embedded":
        shutil.copytree(EMBEDDED, directory)
        return
    network = import_module("tests.checkpoints").unet(kind)
    network.save_pretrained(directory)
    weights = directory / "diffusion_pytorch_model.safetensors"
    conversion = import_module("stillhouse.convert.families.stable_diffusion")
    conversion.export_unet(network, directory / "model.onnx", weights, 7)


def feeds(graph: Path, rows: int = 2, height: int = 8, width: int = 12, seed: int = 0) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(seed)
    lengths = {"batch": rows, "height": height, "width": width}
    shapes = {
        name: [lengths[axis] if isinstance(axis, str) else axis or 1 for axis in axes]
        for name, axes in read_signature(graph).inputs.items()
    }
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"timestep": draw.uniform(0, 999, rows).astype(np.float32)}


def select_inputs(feeds: dict[str, NDArray[Any]], graph: Path) -> dict[str, NDArray[Any]]:
    return {name: feeds[name] for name in read_signature(graph).inputs}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "layer"), [*((kind, 0) for kind in KINDS), ("sd1", -1), ("embedded", -1)])
def test_shallow_on_the_full_ones_features_is_the_whole_network(
    kind: str, layer: int, backend: str, cut_of: CutOf
) -> None:
    """The same operations on the same numbers, so the same bits; 1e-6 is left to runtimes that fuse them otherwise."""
    graph, cut = cut_of(kind, layer)
    all_feeds = feeds(graph)
    whole = open_runner(graph, backend)(all_feeds)["out_sample"]
    full = open_runner(cut.full, backend)(all_feeds)
    shallow = open_runner(cut.shallow, backend)(
        select_inputs(all_feeds | {DEEP_TENSOR: full[DEEP_TENSOR]}, cut.shallow)
    )["out_sample"]
    largest = np.abs(whole).max()
    assert largest > 0.1
    np.testing.assert_allclose(full["out_sample"], whole, atol=1e-6 * largest)
    np.testing.assert_allclose(shallow, full["out_sample"], atol=1e-6 * largest)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A graph in int8 for OpenVINO, by kind; made at the first call."""
    root = tmp_path_factory.mktemp("quantised")

    def find(kind: str) -> Path:
        out = root / kind / "model.xml"
        if not out.exists():
            _write_unet(kind, root / f"{kind}-float")
            source = root / f"{kind}-float" / "model.onnx"
            out.parent.mkdir()
            import_module("stillhouse.backends.quantize").quantize_openvino(source, out, [feeds(source)])
        return out

    return find


@pytest.mark.parametrize(("kind", "layer"), [("sd1", 0), ("sd1", -1), ("embedded", 0)])
def test_a_quantised_graph_is_split_alike(kind: str, layer: int, quantised: Callable[[str], Path]) -> None:
    graph = quantised(kind)
    cut, all_feeds = split_denoiser(graph, layer), feeds(graph)
    whole = open_runner(graph, "openvino")(all_feeds)["out_sample"]
    full = open_runner(cut.full, "openvino")(all_feeds)
    inputs = select_inputs(all_feeds | {DEEP_TENSOR: full[DEEP_TENSOR]}, cut.shallow)
    shallow = open_runner(cut.shallow, "openvino")(inputs)["out_sample"]
    # Another fusion may move a value across the border between two steps of int8, of which a tensor has 255.
    for found in (full["out_sample"], shallow):
        np.testing.assert_allclose(found, whole, atol=2e-2 * np.abs(whole).max())
    assert read_signature(cut.full).outputs == ("out_sample", DEEP_TENSOR)
    assert len(read_signature(cut.shallow).inputs[DEEP_TENSOR]) == 4
    assert set(inputs) - {DEEP_TENSOR} <= set(all_feeds)
    assert cut.shallow_nodes < 0.7 * cut.full_nodes


def test_the_weights_of_a_quantised_graph_are_linked(quantised: Callable[[str], Path]) -> None:
    graph = quantised("embedded")
    cut = split_denoiser(graph)
    assert (cut.full.name, cut.shallow.name, cut.layers) == ("model.full-0.xml", "model.shallow-0.xml", 2)
    for path in (cut.full, cut.shallow):
        assert path.with_suffix(".bin").samefile(graph.with_suffix(".bin"))
    names = read_signature(graph).inputs["sample"]
    assert read_signature(cut.shallow).inputs[DEEP_TENSOR] == (names[0], 64, *names[2:])


def test_a_quantised_graph_that_is_no_unet_is_refused(tmp_path: Path) -> None:
    quantize = import_module("stillhouse.backends.quantize")
    source = write_model(unet(), tmp_path / "model.onnx")
    quantize.compress_openvino_weights(source, tmp_path / "model.xml")
    with pytest.raises(PipelineError, match="cannot be split for step caching: it has no node that concatenates"):
        split_denoiser(tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("kind", "layer", "share"),
    [
        ("sd1", 0, 0.68),
        ("sd1", -1, 0.51),
        ("sd2", 0, 0.68),
        ("xl", 0, 0.3),
        ("embedded", 0, 0.1),
        ("embedded", -1, 0.06),
    ],
)
def test_the_shallow_graph_is_much_smaller(kind: str, layer: int, share: float, cut_of: CutOf) -> None:
    """Of two blocks, as the tiny ones have, half remains by nature; the embedded network has three."""
    graph, cut = cut_of(kind, layer)
    assert cut.layers == 2
    assert cut.full_nodes == len(onnx.load(str(graph), load_external_data=False).graph.node)
    assert cut.shallow_nodes < share * cut.full_nodes
    onnx.checker.check_model(str(cut.shallow))
    onnx.checker.check_model(str(cut.full))


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("sd1", {"sample", "timestep", "encoder_hidden_states", DEEP_TENSOR}),
        ("xl", {"sample", "timestep", "text_embeds", "time_ids", DEEP_TENSOR}),
        ("embedded", {"sample", "timestep", DEEP_TENSOR}),
    ],
)
def test_it_takes_only_what_it_still_needs(kind: str, inputs: set[str], cut_of: CutOf) -> None:
    """The first and last block of SD 1.5 attend to the text; those of XL and of the embedded network do not."""
    _, cut = cut_of(kind)
    assert set(read_signature(cut.shallow).inputs) == inputs
    assert read_signature(cut.full).outputs == ("out_sample", DEEP_TENSOR)


def test_the_features_have_the_axes_of_the_picture(cut_of: CutOf) -> None:
    _, cut = cut_of("embedded")
    assert read_signature(cut.shallow).inputs[DEEP_TENSOR] == ("batch", 64, "height", "width")
    assert cut.tensor == "/network/up_blocks.1/upsamplers.0/conv/Conv_output_0"


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_copied(kind: str, cut_of: CutOf) -> None:
    graph, cut = cut_of(kind)
    before = {tensor.name: tensor for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer}
    for path in (cut.full, cut.shallow):
        tensors = onnx.load(str(path), load_external_data=False).graph.initializer
        assert all(tensor == before[tensor.name] and tensor.external_data for tensor in tensors)
        assert path.parent == graph.parent and path.stat().st_size <= graph.stat().st_size
    assert (cut.full.name, cut.shallow.name) == ("model.full-0.onnx", "model.shallow-0.onnx")


@pytest.mark.parametrize("streams", [1, 2])
def test_static_shapes_fit_both(streams: int, cut_of: CutOf) -> None:
    graph, cut = cut_of("embedded")
    all_feeds = feeds(graph)
    full = _static(cut.full, all_feeds, streams)(all_feeds)
    rest = select_inputs(all_feeds | {DEEP_TENSOR: full[DEEP_TENSOR]}, cut.shallow)
    np.testing.assert_array_equal(_static(cut.shallow, rest, streams)(rest)["out_sample"], full["out_sample"])


def _static(path: Path, all_feeds: dict[str, NDArray[Any]], streams: int) -> Any:
    shapes = {name: (1, *array.shape[1:]) if streams > 1 else array.shape for name, array in all_feeds.items()}
    return open_runner(path, "openvino", RunnerOptions(shapes=shapes, streams=streams))


def _joined(names: list[str], inputs: list[str], depth: str = "/network/mid_block/conv") -> onnx.ModelProto:
    """Two convolutions, one of them below, joined under each of these names; then a last one."""
    weights = {name: np.ones((2, 2, 1, 1), np.float32) for name in ("down", "mid")}
    nodes = [
        node("Conv", ["sample", "down"], ["skip"], name="/network/down_blocks.0/conv"),
        node("Conv", ["skip", "mid"], ["low"], name=depth),
        *(node("Concat", inputs, [f"joined.{i}"], name=name, axis=1) for i, name in enumerate(names)),
    ]
    last = nodes[-1].output[0]
    out = node("ReduceMean", [last], ["out_sample"], name="/network/conv_out", keepdims=1)
    return make_model(
        [*nodes, out], [("sample", ["b", 2, "h", "w"])], [("out_sample", ["b", None, None, None])], weights
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (unet(), "no node that concatenates a skip connection in a scope up_blocks.N"),
        (_joined(["/network/decoder/Concat"], ["low", "skip"]), "no node that concatenates a skip connection"),
        (_joined(["/network/up_blocks.0/Concat"], ["skip", "sample"]), "does not concatenate one deeper tensor"),
        (_joined(["/network/up_blocks.0/Concat"], ["low", "skip", "skip"]), "does not concatenate one deeper tensor"),
        (_joined(["/network/up_blocks.0/Concat"], ["low", "skip"], "/network/elsewhere"), "does not concatenate"),
    ],
)
def test_a_graph_of_another_shape_is_refused(model: onnx.ModelProto, reason: str, tmp_path: Path) -> None:
    graph = write_model(model, tmp_path / "model.onnx")
    with pytest.raises(PipelineError, match=f"cannot be split for step caching: .*{reason}.*; allowed: a U-Net"):
        split_denoiser(graph)
    assert list(tmp_path.iterdir()) == [graph]


def test_a_second_way_up_is_refused(tmp_path: Path) -> None:
    model = _joined(["/network/up_blocks.0/Concat"], ["low", "skip"])
    model.graph.node[1].output[0] = "lowest"
    copies = [
        helper.make_node("Conv", ["lowest", "mid"], [name], name=f"/network/mid_block/{name}")
        for name in ("low", "other")
    ]
    around = helper.make_node("Concat", ["joined.0", "other"], ["both"], name="/network/up_blocks.0/Concat_1", axis=1)
    nodes = [*model.graph.node[:2], *copies, model.graph.node[2], around, model.graph.node[3]]
    nodes[-1].input[0] = "both"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(PipelineError, match="depends on the deeper blocks by more than one tensor"):
        split_denoiser(write_model(model, tmp_path / "model.onnx"))


def test_the_smallest_graph_that_can_be_cut(tmp_path: Path) -> None:
    model = _joined(["/network/up_blocks.0/Concat", "/network/up_blocks.1/Concat"], ["low", "skip"])
    cut = split_denoiser(write_model(model, tmp_path / "model.onnx"))
    assert (cut.tensor, cut.layers, cut.full_nodes, cut.shallow_nodes) == ("low", 1, 5, 3)


@pytest.mark.parametrize("layer", [2, -3, True, 0.5])
def test_a_layer_that_the_block_does_not_have(layer: int, cut_of: CutOf) -> None:
    with pytest.raises(InvalidRequest, match=f"layer is {layer}; allowed: a whole number from -2 to 1"):
        cut_of("embedded", layer)


def test_a_graph_that_was_cut_is_not_cut_again(cut_of: CutOf) -> None:
    _, cut = cut_of("embedded")
    with pytest.raises(PipelineError, match="it is split already"):
        split_denoiser(cut.full)


def test_no_file_and_no_graph(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no file"):
        split_denoiser(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(PipelineError, match="is no ONNX graph"):
        split_denoiser(tmp_path / "model.onnx")
