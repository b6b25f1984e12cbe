import json
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.models.shapes.judge import SCORES
from tests.cli.conftest import FakePipeline, Refused


def test_the_table_has_every_score_and_the_file_every_figure(
    fake: FakePipeline, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", "shapes", "--captions", "3", "--steps", "2", "--json", "judged.json"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("3 captions, 2 ddim steps, guidance 2, ")
    assert all(name.replace("_", " ") in told for name in SCORES)
    judged = json.loads((here / "judged.json").read_text())
    assert judged["scores"]["all_correct"]["value"] == 0
    assert judged["ceiling"]["all_correct"]["value"] == 1


def test_mistakes_are_explained(fake: FakePipeline, refused: Refused) -> None:
    assert "no model" in refused("judge", "nothing")
    assert "steps is 0" in refused("judge", "shapes", "--steps", "0")
    assert "from 1" in refused("judge", "shapes", "--captions", "0")
