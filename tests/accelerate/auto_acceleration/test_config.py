"""Auto-Acceleration's config.yml and folders are read, and invalid ones are refused with an explanation."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.auto_acceleration.config import (
    ONES,
    PRECISIONS,
    AutoAccelerationConfig,
    InputShapes,
    ProjectLayout,
    check_config,
    find_layout,
    read_config,
)
from stillhouse.accelerate.auto_acceleration.yaml_strict import read_yaml
from stillhouse.accelerate.records.report import Bounds
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.errors import InvalidRequest, RuntimeMissing
from tests.accelerate import networks

README = """\
   device: 0 # cpu or 0, 1, 2, 3 ...

   input:
      sample:
         min_shape: [1, 9, 32, 32]
         max_shape: [4, 9, 64, 64]
         use_shape: [1, 9, 64, 64]

      timestep:
         min_shape: [1]
         max_shape: [1]
         use_shape: [1]

      encoder_hidden_states:
         min_shape: [1, 77, 1024]
         max_shape: [4, 77, 1024]
         use_shape: [1, 77, 1024]

   output:
      out_sample:
         use_shape: [1, 4, 64, 64]
"""
"""The sample of Auto-Acceleration's readme.md, with its indentation."""
SHAPES = {
    "sample": InputShapes((1, 9, 32, 32), (1, 9, 64, 64), (4, 9, 64, 64)),
    "timestep": InputShapes((1,), (1,), (1,)),
    "encoder_hidden_states": InputShapes((1, 77, 1024), (1, 77, 1024), (4, 77, 1024)),
}
UNET = Signature(
    inputs={
        "sample": ("batch", 9, "height", "width"),
        "timestep": ("batch",),
        "encoder_hidden_states": ("batch", "sequence", 1024),
    },
    outputs=("out_sample",),
    external={},
    arithmetic="f32",
)
LENGTHS = st.integers(1, 4096)
WORDS = st.text("abc_", min_size=1, max_size=9)
NAMES = st.one_of(st.integers(0, 999).map(str), st.text(min_size=1, max_size=9))


@pytest.fixture
def read(tmp_path: Path) -> "Reader":
    return Reader(tmp_path)


class Reader:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.yml"

    def __call__(self, text: str | bytes) -> AutoAccelerationConfig:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(self.path)

    def input(self, **shapes: object) -> InputShapes:
        return self(yaml.safe_dump({"input": {"x": shapes}})).inputs["x"]


def test_their_sample_is_read_as_it_is(read: Reader) -> None:
    config = read(README)
    assert config == AutoAccelerationConfig(device=0, inputs=SHAPES, outputs={"out_sample": (1, 4, 64, 64)})
    assert config.shapes == {
        "sample": (1, 9, 64, 64),
        "timestep": (1,),
        "encoder_hidden_states": (1, 77, 1024),
    }
    check_config(config, UNET)


@given(document=st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(WORDS, inner, min_size=1, max_size=3)))
def test_tabs_are_read_as_the_indentation_that_they_show(
    tmp_path_factory: pytest.TempPathFactory, document: object
) -> None:
    """Auto-Acceleration's documentation prints its config.yml with tabs."""
    path = tmp_path_factory.mktemp("tabs") / "config.yml"
    spaces = yaml.safe_dump({"input": document}, indent=4, default_style='"', width=10**6)
    lines = [(len(line) - len(line.lstrip(" ")), line.lstrip(" ")) for line in spaces.split("\n")]
    path.write_text("\n".join("\t" * (depth // 4) + text for depth, text in lines))
    with (
        pytest.warns(UserWarning, match="tabs, which YAML does not allow, were read as spaces")
        if any(depth for depth, _ in lines)
        else nullcontext()
    ):
        tabbed = read_yaml(path)
    path.write_text(spaces)
    assert tabbed == read_yaml(path)


def test_their_sample_with_tabs_is_the_same(read: Reader) -> None:
    tabbed = README.replace("\n   ", "\n\t").replace("   ", "\t").replace("device: 0 #", "device:\t0\t#")
    with pytest.warns(UserWarning, match=r"config.yml: tabs, .* were read as spaces \(line 1\)") as caught:
        config = read(tabbed)
    assert config == read(README)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("a:\t1\t# don't\tuse\nb:\t2\n", {"a": 1, "b": 2}),
        ("a: 'b\tc'\nd:\t'ones' # 'e\n", {"a": "b\tc", "d": "ones"}),
        ('a:\t"b\tc"\t\n', {"a": "b\tc"}),
        ("a:\n\t- 'it''s\t'\n\t-\tb#c\n", {"a": ["it's\t", "b#c"]}),
        ("a: don't\t\nb:\tcan't\n", {"a": "don't", "b": "can't"}),
    ],
)
def test_tabs_in_quotes_stay_and_others_separate(tmp_path: Path, text: str, document: object) -> None:
    (tmp_path / "config.yml").write_text(text)
    with pytest.warns(UserWarning, match="were read as spaces"):
        assert read_yaml(tmp_path / "config.yml") == document


def test_axes_that_vary_have_no_length() -> None:
    assert SHAPES["sample"].axes == (None, 9, None, None)
    assert SHAPES["timestep"].axes == (1,)


@st.composite
def _shapes(draw: st.DrawFn) -> InputShapes:
    axes = [sorted(draw(st.tuples(LENGTHS, LENGTHS, LENGTHS))) for _ in range(draw(st.integers(0, 5)))]
    least, use, most = (tuple(axis[place] for axis in axes) for place in range(3))
    return InputShapes(least, use, most)


@given(inputs=st.dictionaries(NAMES, _shapes(), max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, InputShapes]) -> None:
    document = {
        name: {"min_shape": list(shapes.min), "max_shape": list(shapes.max), "use_shape": list(shapes.use)}
        for name, shapes in inputs.items()
    }
    read = Reader(tmp_path_factory.mktemp("config"))
    config = read(yaml.safe_dump({"device": "cpu", "input": document}, sort_keys=False))
    assert config.inputs == inputs


@given(content=st.one_of(st.binary(max_size=80), st.text("{}[]:,-&*!|>'\"% \n\t01ainput<", max_size=80)))
@pytest.mark.filterwarnings("ignore:.*tabs, which YAML does not allow")
def test_any_file_is_a_config_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    read = Reader(tmp_path_factory.mktemp("noise"))
    try:
        config = read(content)
    except InvalidRequest as error:
        assert str(read.path) in str(error)
    else:
        assert isinstance(config, AutoAccelerationConfig)


@pytest.mark.parametrize("name", ["0", "007", "1.0", "1_000", "on", "null", "2024-01-01", "input.1", "höhe"])
def test_names_are_what_is_written(read: Reader, name: str) -> None:
    assert list(read(f"input: {{{name}: {{use_shape: [1]}}}}").inputs) == [name]


def test_use_shape_alone_is_static_and_a_missing_bound_is_use_shape(read: Reader) -> None:
    assert read.input(use_shape=[2, 3]) == InputShapes((2, 3), (2, 3), (2, 3))
    assert read.input(use_shape=[2, 3], max_shape=[4, 3]) == InputShapes((2, 3), (2, 3), (4, 3))
    assert read.input(use_shape=[2, 3], min_shape=[1, 3], max_shape=None) == InputShapes((1, 3), (2, 3), (2, 3))
    assert read.input(use_shape=[]) == InputShapes((), (), ())


def test_everything_has_a_default(read: Reader) -> None:
    assert read("device: auto") == AutoAccelerationConfig()
    assert read("input:\noutput:\nprecision:\ntolerance: {min_sqnr: }\n") == AutoAccelerationConfig()


@pytest.mark.parametrize(
    ("text", "device"), [("cpu", "cpu"), ("gpu", "gpu"), ("auto", "auto"), ("3", 3), ("'0'", 0), ("0", 0)]
)
def test_devices(read: Reader, text: str, device: str | int) -> None:
    assert read(f"device: {text}").device == device


def test_further_blocks(read: Reader) -> None:
    config = read(
        "precision: [fp32, int8, bf16]\n"
        "objective: throughput\n"
        "tolerance: {min_sqnr: 25, max_mae: 1e-3, max_memory: 2.0e+9, min_score: .5}\n"
        "iterations: 50\n"
        "probe: ../calls.npz\n"
    )
    assert config.precision == ("f32", "int8-static", "int8-dynamic", "int8-weights", "bf16")
    assert set(config.precision) <= set(PRECISIONS)
    assert (config.goal, config.iterations) == ("throughput", 50)
    assert config.tolerance == Bounds(min_sqnr=25, max_mae=0.001, max_memory=2 * 10**9, min_score=0.5)
    assert isinstance(config.tolerance.max_memory, int)
    assert config.probe == read.path.parent / "../calls.npz"
    assert read("{precision: fp16, goal: cost, objective: cost, probe: ones}") == AutoAccelerationConfig(
        precision=("f16",), goal="cost", probe=ONES
    )


def test_merged_keys_are_no_duplicates(read: Reader) -> None:
    config = read("input:\n  a: &a {use_shape: [1], min_shape: [1]}\n  b: {<<: *a, use_shape: [2]}\n")
    assert config.inputs["b"] == InputShapes((1,), (2,), (2,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config.yml is empty; allowed: a mapping"),
        ("[1, 2]", r"config.yml is \[1, 2\]; allowed: a mapping"),
        ("device: [", r"config.yml is not YAML: .*line 1"),
        (
            "input:\n\tsample:\n        use_shape: [1]\n",
            r"the tab on line 2 is ambiguous, because other lines have spaces; allowed: the same indentation",
        ),
        ("a:\n  b:\n\tc: 2\n", r"the tab on line 3 is ambiguous"),
        ("input:\n\tsample: [1\n", r"is not YAML: expected ',' or ']'.* \(line 3\)"),
        ("a: 'b\n\tc: 1\n", r"not YAML: .*unexpected end of stream"),
        ("a: 1\n---\nb: 2\n", r"not YAML: but found another document"),
        ("device: !!python/name:os.system x", r"not YAML: could not determine a constructor for the tag"),
        ("device: 2020-13-45", r"cannot be parsed: month must be in 1..12"),
        ("[" * 600, r"cannot be parsed|not YAML"),
        ("? [a]\n: 1", r"the key on line 1 is not a scalar"),
        ("input:\n  a: {use_shape: [1]}\n  a: {use_shape: [2]}", r"'a' is on line 2 and again on line 3"),
        ("devise: cpu", r"there is no key 'devise'; allowed: device, input, .*; did you mean 'device'\?"),
        ("device: CPU", r"there is no device 'CPU'; allowed: auto, cpu, gpu, 0, 1, 2; did you mean 'cpu'\?"),
        ("device: -1", r"there is no device -1"),
        ("device: true", r"there is no device True"),
        ("device: 1.5", r"there is no device 1.5"),
        ("device: [0, 1]", r"there is no device \[0, 1\]"),
        ("input: sample", r"input is 'sample'; allowed: a mapping"),
        ("input: {x: [1, 3]}", r"input 'x' is \[1, 3\]; allowed: a mapping"),
        ("input: {x: }", r"input 'x' is empty; allowed: a mapping"),
        ("input: {x: {min_shap: [1]}}", r"input 'x': there is no key 'min_shap'; .* did you mean 'min_shape'\?"),
        ("input: {x: {min_shape: [1]}}", r"input 'x' has no use_shape; allowed: the shape to measure"),
        ("output: {y: {max_shape: [1]}}", r"output 'y' has no use_shape"),
        ("input: {x: {use_shape: 1x3}}", r"input 'x': use_shape is '1x3'; allowed: a list of integers of at least 1"),
        ("input: {x: {use_shape: 7}}", r"use_shape is 7; allowed: a list"),
        ("input: {x: {use_shape: [1, 0]}}", r"use_shape is \[1, 0\]; allowed: a list of integers of at least 1"),
        ("input: {x: {use_shape: [1, -1]}}", r"use_shape is \[1, -1\]; allowed"),
        ("input: {x: {use_shape: [1.0]}}", r"use_shape is \[1.0\]; allowed"),
        ("input: {x: {use_shape: [true]}}", r"use_shape is \[True\]; allowed"),
        ("input: {x: {use_shape: [[1]]}}", r"use_shape is \[\[1\]\]; allowed"),
        ("input: {x: {use_shape: &a [*a]}}", r"use_shape is \[\[...\]\]; allowed"),
        ("input: {x: {use_shape: [99999999999]}}", r"use_shape is \[99999999999\]; allowed"),
        (
            "input: {x: {use_shape: [1, 2], min_shape: [1]}}",
            r"min_shape \[1\] and use_shape \[1, 2\] differ in rank; allowed: the same number of axes in both shapes",
        ),
        (
            "input: {x: {use_shape: [1, 2], min_shape: [1, 4], max_shape: [1, 3]}}",
            r"'x': on axis 1, min_shape 4 is larger than max_shape 3; "
            r"allowed: min_shape at most max_shape on every axis",
        ),
        (
            "input: {x: {use_shape: [1, 9], min_shape: [1, 1], max_shape: [1, 8]}}",
            r"'x': on axis 1, use_shape 9 is not between min_shape and max_shape; allowed: 1 to 8",
        ),
        ("precision: fp9", r"there is no precision 'fp9'; allowed: f32, bf16, .* did you mean"),
        ("precision: [[f32]]", r"there is no precision \['f32'\]"),
        ("goal: fast", r"there is no goal 'fast'; allowed: latency, throughput, memory, cost"),
        (
            "{goal: cost, objective: memory}",
            r"the keys goal, 'cost', and objective, 'memory'; allowed: only one of these keys, or equal values",
        ),
        ("tolerance: 3", r"tolerance is 3; allowed: a mapping"),
        ("tolerance: {min_snr: 3}", r"there is no key 'min_snr'; .* did you mean 'min_sqnr'\?"),
        ("tolerance: {max_mae: -1}", r"max_mae is -1; allowed: a number from 0 to inf"),
        ("tolerance: {max_mae: little}", r"max_mae is 'little'; allowed"),
        ("tolerance: {max_mae: .nan}", r"max_mae is nan; allowed"),
        ("tolerance: {min_sqnr: true}", r"min_sqnr is True; allowed"),
        ("iterations: 0", r"iterations is 0; allowed: a whole number from 1"),
        ("iterations: many", r"iterations is 'many'; allowed"),
        ("probe: 3", r"probe is 3; allowed: the name of an .npz file of inputs, or ones"),
    ],
)
def test_mistakes_are_refused(read: Reader, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read(text)
    assert str(read.path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "config.yml", tmp_path):
        with pytest.raises(InvalidRequest, match=f"{path} cannot be read: "):
            read_config(path)


def test_without_pyyaml(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(RuntimeMissing, match=r"PyYAML.*; pip install 'stillhouse\[accelerate\]'"):
        read("device: cpu")


def _config(**inputs: InputShapes | tuple[int, ...]) -> AutoAccelerationConfig:
    return AutoAccelerationConfig(
        inputs={n: s if isinstance(s, InputShapes) else InputShapes(s, s, s) for n, s in inputs.items()}
    )


def test_a_config_without_inputs_fits_every_graph() -> None:
    check_config(AutoAccelerationConfig(), UNET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smaple": (1, 9, 8, 8)}, r"there is no input 'smaple'; allowed: sample, .*; did you mean 'sample'\?"),
        ({"timestep": None}, r"lacks input 'timestep'; .*add under `input`:  timestep: \{use_shape: \[batch\]\}"),
        ({"sample": (1, 9, 8)}, r"the config gives input 'sample' 3 axes: \[1, 9, 8\]; allowed: 4 axes"),
        ({"sample": (1, 4, 8, 8)}, r"axis 1 of input 'sample' is 4, but is fixed in the graph; allowed: 9"),
        (
            {"sample": InputShapes((1, 9, 8, 8), (1, 9, 8, 8), (1, 12, 8, 8))},
            r"axis 1 of input 'sample' ranges from 9 to 12, but is fixed in the graph; allowed: 9; "
            r"write 9 into the config, or export the model with this axis dynamic",
        ),
        ({"timestep": (2,)}, r"input 'timestep' has shape \[2\]; allowed: \[batch\], .* one length for each name"),
    ],
)
def test_what_does_not_fit_the_graph(changes: dict[str, InputShapes | tuple[int, ...] | None], message: str) -> None:
    inputs = {**SHAPES, **changes}
    with pytest.raises(InvalidRequest, match=message):
        check_config(_config(**{name: shapes for name, shapes in inputs.items() if shapes is not None}), UNET)


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest, match=r"there is no output 'sample_out'; allowed: out_sample; did you mean"):
        check_config(AutoAccelerationConfig(outputs={"sample_out": (1,)}), UNET)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    (tmp_path / "input" / "config").mkdir(parents=True)
    (tmp_path / "input" / "model").mkdir()
    (tmp_path / "input" / "config" / "config.yml").write_text(README)
    networks.external(tmp_path / "input" / "model" / "unet.onnx")
    return tmp_path


def test_folders_are_found_from_the_config_and_from_their_root(folders: Path) -> None:
    config = folders / "input" / "config" / "config.yml"
    layout = ProjectLayout(config, folders / "input" / "model" / "unet.onnx", folders / "output")
    assert find_layout(config) == find_layout(folders) == layout


def test_folders_are_found_from_inside_of_them(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders / "input" / "config")
    assert find_layout(Path("config.yml")).model == folders / "input" / "model" / "unet.onnx"


def test_a_root_without_a_config(folders: Path) -> None:
    config = folders / "input" / "config" / "config.yml"
    other = config.rename(config.with_suffix(".yaml"))
    assert find_layout(folders).config == other
    other.unlink()
    assert find_layout(folders).config is None


def test_no_model_and_several(folders: Path) -> None:
    model = folders / "input" / "model" / "unet.onnx"
    model.with_name("._unet.onnx").write_bytes(b"")
    assert find_layout(folders).model == model
    model.with_name("a.onnx").write_bytes(b"")
    with pytest.raises(
        InvalidRequest, match=r"model contains 2 models: a.onnx, unet.onnx; allowed: exactly one model; pass the model"
    ):
        find_layout(folders)
    for path in model.parent.glob("*.onnx"):
        path.unlink()
    with pytest.raises(
        InvalidRequest, match=r"model contains no .onnx file; allowed: a project with input/config/config.yml, one"
    ):
        find_layout(folders)


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"the directory .*input/model does not exist; allowed: .*; pass the model"
    ):
        find_layout(tmp_path)
    with pytest.raises(
        InvalidRequest,
        match=r"config.yml does not exist; allowed: a config file, or a directory with input/config/config.yml, one",
    ):
        find_layout(tmp_path / "config.yml")


# What Auto-Acceleration gets wrong, by the numbers of the list that it was studied with. Here are those faults that
# reading its files can have; the others are tested where converting, measuring and reporting are.


def test_fault_01_cpu_needs_no_driver(read: Reader) -> None:
    """Auto-Acceleration imported pycuda and tensorrt for every device."""
    before = set(sys.modules)
    read(README.replace("device: 0", "device: cpu"))
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"pycuda", "tensorrt", "torch"}


def test_fault_10_errors_have_a_bound_and_the_choice_a_goal(read: Reader) -> None:
    """Auto-Acceleration printed an error without a scale and made no choice."""
    config = read(README + "   tolerance: {min_sqnr: 20, max_mae: 0.01}\n   goal: latency\n")
    assert (config.tolerance, config.goal) == (Bounds(min_sqnr=20, max_mae=0.01), "latency")


def test_fault_13_results_of_an_earlier_model_are_no_source(folders: Path) -> None:
    """Auto-Acceleration used any files in the output folder, and replaced the model's name everywhere."""
    earlier = folders / "output" / "onnx"
    earlier.mkdir(parents=True)
    networks.numbered(earlier / "earlier.onnx")
    model = folders / "input" / "model" / "unet.onnx"
    named = model.rename(model.with_name("onnx.onnx"))
    assert find_layout(folders).model == named


def test_fault_14_inputs_are_bound_by_name(read: Reader, tmp_path: Path) -> None:
    """Auto-Acceleration's config had to list inputs in the order of the model."""
    shapes = [("0", [2, 16]), ("1", [2, 16])]
    graph = read_signature(networks.numbered(tmp_path / "numbered.onnx"))
    text = "input:\n" + "".join(f"  {name}: {{use_shape: {shape}}}\n" for name, shape in reversed(shapes))
    config = read(f"{text}output: {{5: {{use_shape: [2, 8]}}}}\n")
    check_config(config, graph)
    assert config == read("output: {5: {use_shape: [2, 8]}}\n" + yaml.safe_dump({"input": _use_shapes(dict(shapes))}))


def _use_shapes(shapes: dict[str, list[int]]) -> dict[str, dict[str, list[int]]]:
    return {name: {"use_shape": shape} for name, shape in shapes.items()}
