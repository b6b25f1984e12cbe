import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import main
from stillhouse.pipelines.manifest import Component, write_manifest
from tests.cli.conftest import MANIFEST


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register a single embedded model named tiny whose networks share one weight file."""
    (tmp_path / "unet.onnx").touch()
    monkeypatch.setattr("stillhouse.cli.models.EMBEDDED", {"tiny": tmp_path})
    return tmp_path


def told(directory: Path, capsys: pytest.CaptureFixture[str], **fields: Any) -> str:
    """The row of a model of 1,200,000 parameters in half precision."""
    header = json.dumps({"w": {"dtype": "F16", "shape": [1000, 1200], "data_offsets": [0, 2_400_000]}}).encode()
    (directory / "unet.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2_400_000))
    networks = {name: Component("unet.onnx", "unet.safetensors") for name in ("denoiser", "same_file_again")}
    write_manifest(directory, replace(MANIFEST, components=networks, **fields))
    assert main(["models"]) == 0
    return " ".join(capsys.readouterr().out.splitlines()[1].split())


def test_a_row_says_what_the_manifest_and_the_weights_say(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"judge": {"scores": {"all_correct": {"value": 0.934, "low": 0.917, "high": 0.948}}}}
    row = told(embedded, capsys, source={"licence": "Apache-2.0"}, evidence=measured)
    assert row == "tiny 1.2 M 2.4 MB 64x64 3 ddim Apache-2.0 93.4% (91.7% to 94.8%)"


def test_what_is_not_known_is_not_made_up(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(embedded, capsys).endswith("unknown not measured")
