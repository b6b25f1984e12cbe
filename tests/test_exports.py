import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

import stillhouse
from stillhouse import errors

HEAVY = {
    "litestar",
    "uvicorn",
    "msgspec",
    "grpc",
    "numpy",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "PIL",
    "rich",
    "scipy",
}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_all_is_what_is_visible() -> None:
    assert sorted(stillhouse.__all__) == dir(stillhouse)
    assert len(set(stillhouse.__all__)) == len(stillhouse.__all__)


@pytest.mark.parametrize("name", stillhouse.__all__)
def test_every_public_name_exists_and_has_a_docstring(name: str) -> None:
    value = getattr(stillhouse, name)
    assert inspect.getdoc(value) or not callable(value)


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(stillhouse.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lod"):
        stillhouse.lod  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert version("stillhouse") == stillhouse.__version__


def test_importing_loads_nothing_heavy() -> None:
    assert not HEAVY & set(python("import sys, stillhouse; print(*sys.modules)").split())


def test_importing_takes_less_than_a_fifth_of_a_second() -> None:
    code = "import time; began = time.perf_counter(); import stillhouse; print(time.perf_counter() - began)"
    assert min(float(python(code)) for _ in range(3)) < 0.2


def test_opening_a_pipeline_needs_no_torch() -> None:
    code = "import sys, stillhouse; stillhouse.load, stillhouse.Pipeline; print(*sys.modules)"
    assert not {"torch", "diffusers", "transformers", "onnx", "rich"} & set(python(code).split())
