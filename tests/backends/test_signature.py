"""An ONNX file is read without a runtime, and as the onnx library reads it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.datasets import get_example

from stillhouse.backends import open_runner
from stillhouse.backends.openvino import read_openvino_model, save_openvino_model
from stillhouse.backends.signature import read_signature
from stillhouse.errors import PipelineError
from tests.backends.networks import make_model, node, unet, write_model

AXES = st.lists(st.one_of(st.integers(1, 2**40), st.sampled_from(["batch", "höhe"]), st.none()), max_size=4)


@given(axes=st.lists(AXES, min_size=1, max_size=4))
def test_reads_what_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, axes: list[list[int | str | None]]
) -> None:
    inputs = [(f"in{place}", shape) for place, shape in enumerate(axes)]
    nodes = [node("Identity", [name], [name.replace("in", "out")]) for name, _ in inputs]
    model = make_model(nodes, inputs, [(name.replace("in", "out"), shape) for name, shape in inputs])
    signature = read_signature(write_model(model, tmp_path_factory.mktemp("signature") / "model.onnx"))
    assert signature.inputs == {name: tuple(shape) for name, shape in inputs}
    assert signature.outputs == tuple(f"out{place}" for place in range(len(axes)))
    assert (signature.external, signature.arithmetic) == ({}, "f32")


@settings(max_examples=80)
@given(data=st.data())
def test_a_part_of_a_file_is_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write_model(unet(), tmp_path_factory.mktemp("part") / "model.onnx")
    whole, content = read_signature(path), path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_signature(path) == whole
    except PipelineError as error:
        assert str(path) in str(error)


@settings(max_examples=80)
@given(content=st.binary(max_size=200))
def test_anything_else_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"model.onnx is no ONNX graph"):
        read_signature(path)


def test_initializers_that_are_listed_as_inputs_are_not_fed(tmp_path: Path) -> None:
    model = make_model([node("Add", ["x", "w"], ["y"])], [("x", [2])], [("y", [2])], {"w": np.ones(2, np.float32)})
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    assert list(read_signature(write_model(model, tmp_path / "old.onnx")).inputs) == ["x"]


def test_files_beside_the_graph_are_found_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(unet(), path, save_as_external_data=True, location="weights.bin", size_threshold=256)
    weights = tmp_path / "weights.bin"
    assert list(read_signature(path).external) == ["weights.bin"]
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(PipelineError, match=r"weights.bin has \d+ bytes, but the weights of model.onnx end at"):
        read_signature(path)
    weights.unlink()
    with pytest.raises(PipelineError, match=r"weights.bin, which holds weights of model.onnx, is missing"):
        read_signature(path)


@pytest.mark.parametrize(
    ("nodes", "arithmetic"),
    [
        ([node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), node("MatMul", ["x", "w"], ["y"])], "f32"),
        (
            [
                node("Transpose", ["h"], ["t"], perm=[1, 0]),
                node("Cast", ["t"], ["w"], to=TensorProto.FLOAT),
                node("MatMul", ["x", "w"], ["y"]),
            ],
            "f32",
        ),
        (
            [
                node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
                node("MatMul", ["a", "h"], ["b"]),
                node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
            ],
            "mixed",
        ),
        (
            [
                node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
                node("Neg", ["a"], ["b"]),
                node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
            ],
            "mixed",
        ),
        (
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
                node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            ],
            "mixed",
        ),
    ],
)
def test_halves_that_are_stored_are_told_from_halves_that_are_computed_with(
    nodes: list[onnx.NodeProto], arithmetic: str, tmp_path: Path
) -> None:
    model = make_model(nodes, [("x", ["n", 2])], [("y", ["n", 2])], {"h": np.eye(2, dtype=np.float16)})
    assert read_signature(write_model(model, tmp_path / "model.onnx")).arithmetic == arithmetic


@given(axes=st.lists(AXES, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_graph_of_openvinos_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, axes: list[list[int | str | None]]
) -> None:
    """As long as it is ours; axes of others have no names. Its lengths have 63 bits."""
    inputs = [(f"in{place}", shape) for place, shape in enumerate(axes)]
    nodes = [node("Neg", [name], [name.replace("in", "out")]) for name, _ in inputs]
    model = make_model(nodes, inputs, [(name.replace("in", "out"), shape) for name, shape in inputs])
    path = write_model(model, tmp_path_factory.mktemp("ir") / "model.onnx")
    want, ir = read_signature(path), path.with_suffix(".xml")
    save_openvino_model(read_openvino_model(path, want), ir)
    assert read_signature(ir) == want
    ir.write_text(ir.read_text().replace("<stillhouse>", "<others>").replace("</stillhouse>", "</others>"))
    unnamed = {name: tuple(a if isinstance(a, int) else None for a in shape) for name, shape in want.inputs.items()}
    assert read_signature(ir).inputs == unnamed


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    graph = write_model(unet(), tmp_path / "model.onnx")
    save_openvino_model(read_openvino_model(graph, read_signature(graph)), tmp_path / "ir.xml")
    return tmp_path / "ir.xml"


def test_the_weights_of_a_graph_of_openvinos_are_looked_for(ir: Path) -> None:
    weights = ir.with_suffix(".bin")
    assert read_signature(ir).external == {"ir.bin": weights.stat().st_size}
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(PipelineError, match=r"ir.bin has \d+ bytes, but the weights of ir.xml end at"):
        read_signature(ir)
    weights.unlink()
    with pytest.raises(PipelineError, match=r"ir.bin, which holds weights of ir.xml, is missing"):
        read_signature(ir)
    read_signature(ir, external=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_part_of_a_graph_of_openvinos_is_refused(ir: Path, part: float) -> None:
    cut = ir.with_name("cut.xml")
    cut.write_bytes(ir.read_bytes().rstrip()[: int(part * ir.stat().st_size)].rstrip(b">"))
    with pytest.raises(PipelineError, match="cut.xml is no OpenVINO graph, or is cut short"):
        read_signature(cut)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no XML",
        "<net/>",
        "<net><layers><layer type='Parameter' name='x'/></layers></net>",
        "<net><layers><layer name='x'/></layers></net>",
        "<net><layers/><rt_info><stillhouse><axes value='['/></stillhouse></rt_info></net>",
    ],
)
def test_other_xml_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.xml").write_text(content)
    with pytest.raises(PipelineError, match="other.xml is no OpenVINO graph"):
        read_signature(tmp_path / "other.xml")


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "folder/../../weights.bin"])
def test_weights_outside_of_the_graphs_directory_are_refused(location: str, tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    graph = onnx.helper.make_graph([], "outside", [], [], initializer=[tensor])
    (tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(PipelineError, match="outside its own directory"):
        read_signature(tmp_path / "model.onnx")


def test_a_file_larger_than_a_message_may_be_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)  # takes no room on the disk
    with pytest.raises(PipelineError, match="2147483648 bytes; allowed: ONNX files below 2 GiB.*external data"):
        read_signature(path)


def test_axes_without_a_length_or_a_name_are_open_however_they_are_written(tmp_path: Path) -> None:
    """PaddlePaddle writes -1, others "?" or an empty name; 0 is a length: that of a cache that is still empty."""
    model = make_model([node("Identity", ["x"], ["y"])], [("x", [-1, 0, "?", "", None, "n", 3])], [("y", [None] * 7)])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1
    signature = read_signature(write_model(model, tmp_path / "model.onnx"))
    assert signature.inputs == {"x": (None, 0, None, None, None, "n", 3)}


def test_an_input_whose_number_of_axes_is_unknown_is_refused(tmp_path: Path) -> None:
    model = make_model([node("Identity", ["x"], ["y"])], [("x", [2])], [("y", [2])])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(PipelineError, match="input 'x' of .* has no shape, not even a number of axes"):
        read_signature(write_model(model, tmp_path / "model.onnx"))


SEQUENCE = onnx.helper.make_tensor_sequence_value_info("other", TensorProto.FLOAT, [2]).type
OTHER_TYPES = {
    "sequence of tensor of float": SEQUENCE,
    "optional sequence of tensor of float": onnx.helper.make_optional_type_proto(SEQUENCE),
    "map from int64 to tensor of string": onnx.helper.make_map_type_proto(
        TensorProto.INT64, onnx.helper.make_tensor_type_proto(TensorProto.STRING, [])
    ),
    "sparse tensor": onnx.helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2]),
    "tensor of bfloat16": onnx.helper.make_tensor_type_proto(TensorProto.BFLOAT16, [2]),
}


def with_types(outputs: dict[str, onnx.TypeProto], path: Path, inputs: dict[str, onnx.TypeProto] | None = None) -> Path:
    """A graph with inputs and outputs of these types, by name; the input "x" is a tensor of floats."""
    model = make_model([node("Identity", ["x"], ["y"])], [("x", [2])], [("y", [2])])
    values = {name: onnx.ValueInfoProto(name=name, type=kind) for name, kind in {**outputs, **(inputs or {})}.items()}
    del model.graph.output[:]
    model.graph.output.extend(values[name] for name in outputs)
    model.graph.input.extend(values[name] for name in inputs or {})
    return write_model(model, path)


FLOATS = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
TEXT = onnx.helper.make_tensor_type_proto(TensorProto.STRING, [2])


@pytest.mark.parametrize(("text", "kind"), [*OTHER_TYPES.items(), ("tensor of string", TEXT)])
def test_outputs_that_are_no_tensors_of_numbers_are_left_out(text: str, kind: onnx.TypeProto, tmp_path: Path) -> None:
    signature = read_signature(with_types({"a": kind, "y": FLOATS, "b": kind}, tmp_path / "model.onnx"))
    assert (signature.outputs, signature.skipped_outputs) == (("y",), {"a": text, "b": text})
    with pytest.raises(PipelineError, match=f"no output of .*none.onnx is a tensor of numbers: 'a' is a {text}; allow"):
        read_signature(with_types({"a": kind}, tmp_path / "none.onnx"))


@pytest.mark.parametrize(("text", "kind"), OTHER_TYPES.items())
def test_an_input_that_no_array_fits_is_refused_by_its_type(text: str, kind: onnx.TypeProto, tmp_path: Path) -> None:
    graph = with_types({"y": FLOATS}, tmp_path / "model.onnx", {"words": TEXT, "other": kind})
    with pytest.raises(PipelineError, match=f"input 'other' of .*model.onnx is a {text}; allowed: tensors of float16"):
        read_signature(graph)


def test_a_classifier_of_scikit_learn_gives_its_labels(tmp_path: Path) -> None:
    """Its probabilities are a sequence of maps, which no comparison takes."""
    graph = Path(get_example("logreg_iris.onnx"))
    signature = read_signature(graph)
    assert signature.skipped_outputs == {"probabilities": "sequence of map from int64 to tensor of float"}
    runner, x = open_runner(graph), np.ones((3, 2), np.float32)
    assert tuple(spec.name for spec in runner.outputs) == signature.outputs == ("label",)
    assert {name: array.shape for name, array in runner({"float_input": x}).items()} == {"label": (3,)}


def test_weights_and_arithmetic_inside_of_branches_are_seen(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=10, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="inner.bin")
    tensor.external_data.add(key="length", value="4")
    value = onnx.helper.make_tensor_value_info("t", TensorProto.FLOAT16, [2])
    branch = onnx.helper.make_graph([node("Neg", ["w"], ["t"])], "branch", [], [value], [tensor])
    chosen = node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = onnx.helper.make_graph(
        [chosen],
        "network",
        [onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])],
    )
    signature = read_signature(write_model(onnx.helper.make_model(graph), tmp_path / "model.onnx"), external=False)
    assert (signature.external, signature.arithmetic) == ({"inner.bin": 4}, "mixed")
