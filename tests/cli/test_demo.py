from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.cli.demo import PROMPTS, SUGGESTION
from stillhouse.images.files import read_picture
from stillhouse.shapes.caption import is_held_out
from tests.captions import parse_caption
from tests.cli.conftest import FakePipeline


@pytest.mark.parametrize("prompt", [*PROMPTS, SUGGESTION])
def test_demo_prompts_are_held_out(prompt: str) -> None:
    assert str(parse_caption(prompt)) == prompt
    assert is_held_out(prompt)


def test_demo_suggests_a_command(
    fake: FakePipeline, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [".venv/bin/stillhouse"])
    assert main(["demo"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("demo.png: 12 prompts; left: shapes in ") and "right: shapes-3 in " in first
    assert last == f'try: .venv/bin/stillhouse generate "{SUGGESTION}"'
    assert read_picture(here / "demo.png").shape[1] == 2 * 32 + 4 * (2 * 3 * 64 + 6) + 3 * 24
    assert fake.advanced == 2 * 13 * 3
