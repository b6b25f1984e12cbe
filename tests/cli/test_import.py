import re
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import import_, main
from stillhouse.convert.import_model import ImportOptions
from stillhouse.pipelines.choose_backends import BackendChoice
from stillhouse.pipelines.fastest_component import MeasuredComponent
from stillhouse.pipelines.manifest import Component
from tests.cli.conftest import MANIFEST, Refused

PLAIN = MeasuredComponent(Component("g.onnx", "w"), 0.4, 200.0)
FASTER = MeasuredComponent(Component("g.onnx", "w", "openvino", "bf16", 2), 0.125, 34.2)
WRONG = MeasuredComponent(Component("g.onnx", "w", "openvino", "f16"), 0.01, 3.0, "it errs here")


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the importer is called with; nothing is imported."""
    called: list[Any] = []

    def import_model(*given: Any) -> Any:
        called.extend(given[:3])
        return MANIFEST

    monkeypatch.setattr(import_, "import_model", import_model)
    return called


@pytest.fixture
def has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_, "has_memory", lambda directory, manifest, machine: True)


def test_every_option_reaches_the_importer(
    arguments: list[Any], has_memory: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_, "choose_backends", lambda directory, manifest: [])
    argv = "import owner/name -o mine --name m --lora a.safetensors --lora b.safetensors:0.5 --dtype float16 --force"
    assert main(argv.split()) == 0
    options = ImportOptions("m", ("a.safetensors", "b.safetensors:0.5"), "float16", force=True)
    assert arguments == ["owner/name", Path("mine"), options]
    assert capsys.readouterr().out.splitlines()[-1].endswith("--model mine")


def test_the_choice_of_backends_is_printed_with_what_was_measured(
    arguments: list[Any], has_memory: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = [
        BackendChoice("denoiser", PLAIN, (FASTER, WRONG)),
        BackendChoice("decoder", PLAIN, (WRONG,)),
        BackendChoice("text_encoder", PLAIN, is_cut=True),
    ]
    monkeypatch.setattr(import_, "choose_backends", lambda directory, manifest: choices)
    assert main(["import", "owner/name", "-o", "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "  denoiser: openvino bf16 in 2 streams, 0.125 s instead of 0.4 s of onnxruntime f32, SQNR 34 dB",
        "  decoder: onnxruntime f32, 0.4 s; no other was faster",
        "  text_encoder: onnxruntime f32, 0.4 s; the time ended before another was faster",
    ]


@pytest.mark.parametrize(
    ("options", "fits", "reason"),
    [(["--no-measure"], True, "not measured"), ([], False, "too little memory to measure")],
)
def test_without_a_measurement_the_kind_of_processor_decides(
    arguments: list[Any],
    options: list[str],
    fits: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(import_, "has_memory", lambda directory, manifest, machine: fits)
    monkeypatch.setattr(import_, "set_known_backends", lambda directory, manifest, machine: ("openvino", "bf16"))
    assert main(["import", "owner/name", "-o", "mine", *options]) == 0
    assert re.search(f"openvino bf16, by the kind of processor; {reason}", capsys.readouterr().out)


def test_mistakes_are_explained(refused: Refused) -> None:
    assert "-o" in refused("import", "somewhere")
    assert "SOURCE" in refused("import", "-o", "mine")
