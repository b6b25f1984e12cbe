import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.errors import ManifestError, UnknownModel
from stillhouse.pipelines.load import EMBEDDED, find_pipeline, load
from tests.conftest import Checkpoint


def test_a_name_of_an_embedded_model() -> None:
    assert find_pipeline("shapes") == EMBEDDED["shapes"]


def test_a_pipeline_directory(imported: Checkpoint) -> None:
    for directory in (imported("sd1"), str(imported("sd1"))):
        pipeline = load(directory, threads=1, verify=True)
        assert pipeline.manifest.name == "sd1"


def test_a_diffusers_directory(checkpoint: Checkpoint) -> None:
    with pytest.raises(UnknownModel, match=r"is a diffusers directory, and no pipeline yet; run `stillhouse import "):
        find_pipeline(checkpoint("sd1"))


def test_another_directory(tmp_path: Path) -> None:
    told = r"holds no pipeline: it has no .*json; allowed: shapes, shapes-3, shapes-1, or a"
    with pytest.raises(UnknownModel, match=told):
        find_pipeline(tmp_path)


@pytest.mark.parametrize(("name", "fix"), [("shape", "did you mean 'shapes'"), ("xl", "make one with")])
def test_an_unknown_name(name: str, fix: str) -> None:
    with pytest.raises(UnknownModel, match=f"there is no model '{name}'.*{fix}"):
        find_pipeline(name)


def test_an_embedded_model_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "shapes", tmp_path)
    with pytest.raises(ManifestError, match="does not exist"):
        load("shapes")


def test_no_runtime_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, stillhouse.pipelines.load, stillhouse.pipelines.pipeline, stillhouse.convert.import_model;"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
