from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli import main
from stillhouse.convert.import_model import ImportOptions
from tests.cli.conftest import MANIFEST, Refused


def test_every_option_reaches_the_importer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[Any] = []

    def import_model(*given: Any) -> Any:
        arguments.extend(given[:3])
        return MANIFEST

    monkeypatch.setattr("stillhouse.cli.import_.import_model", import_model)
    argv = "import owner/name -o mine --name m --lora a.safetensors --lora b.safetensors:0.5 --dtype float16 --force"
    assert main(argv.split()) == 0
    options = ImportOptions("m", ("a.safetensors", "b.safetensors:0.5"), "float16", force=True)
    assert arguments == ["owner/name", Path("mine"), options]
    assert capsys.readouterr().out.splitlines()[-1].endswith("--model mine")


def test_mistakes_are_explained(refused: Refused) -> None:
    assert "-o" in refused("import", "somewhere")
    assert "SOURCE" in refused("import", "-o", "mine")
