import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.distill.evaluation import comparison
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from stillhouse.shapes.score import SCORES
from tests.cli.conftest import FakePipeline, Refused


def test_the_table_and_the_file_have_every_score(
    fake: FakePipeline, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", "shapes", "--captions", "3", "--steps", "2", "--json", "judged.json"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("3 captions, 2 ddim steps, guidance 2, ")
    assert all(name.replace("_", " ") in output for name in SCORES)
    scores = json.loads((here / "judged.json").read_text())
    assert scores["scores"]["all_correct"]["value"] == 0
    assert scores["ceiling"]["all_correct"]["value"] == 1


def test_mistakes_are_explained(fake: FakePipeline, refused: Refused) -> None:
    assert "no model" in refused("judge", "nothing")
    assert "steps is 0" in refused("judge", "shapes", "--steps", "0")
    assert "from 1" in refused("judge", "shapes", "--captions", "0")


@pytest.fixture
def hasty(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded model with a default of two steps."""
    monkeypatch.setattr(comparison, "DIVERSITY_SEEDS", 2)
    shutil.copytree(find_pipeline("shapes"), here / "hasty")
    manifest = read_manifest(here / "hasty")
    write_manifest(here / "hasty", replace(manifest, name="hasty", defaults=replace(manifest.defaults, steps=2)))
    return "hasty"


def test_a_pipeline_is_compared_with_its_teacher_on_a_page(hasty: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["judge", hasty, "--against", "shapes", "--captions", "8", "--steps", "3"]
    assert main([*command, "-o", "report.html", "--json", "report.json"]) == 0
    output = capsys.readouterr().out
    assert "teacher, 3 steps" in output and "dpmpp_2m 2 unguided" in output and "report.html" in output
    report = json.loads(Path("report.json").read_text())
    assert report["caption_count"] == 8 and report["students"] == ["hasty, 2 steps"]
    assert "<!doctype html>" in Path("report.html").read_text()


def test_models_other_than_shapes_are_compared_on_prompts(hasty: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red circle\n\na blue square\n")
    command = ["judge", hasty, "--against", "shapes", "--captions", "8", "--steps", "3", "--prompts", "prompts.txt"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "all correct" not in output and "PSNR to pictures of the teacher" in output


def test_mistakes_of_a_comparison_are_explained(here: Path, refused: Refused) -> None:
    Path("empty.txt").write_text("\n")
    assert "name the teacher with --against" in refused("judge", "shapes", "shapes")
    assert "without --against" in refused("judge", "shapes", "-o", "page.html")
    assert "without --against" in refused("judge", "shapes", "--clip", "clip")
    assert "no CLIP model in clip" in refused("judge", "shapes", "--against", "shapes", "--clip", "clip")
    assert "no file fid.pt" in refused("judge", "shapes", "--against", "shapes", "--inception", "fid.pt")
    assert "no model 'nothing'" in refused("judge", "shapes", "--against", "nothing")
    assert "has no prompts" in refused("judge", "shapes", "--against", "shapes", "--prompts", "empty.txt")
