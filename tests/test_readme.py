"""The documents say what is so: code blocks run, commands exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import stillhouse
from stillhouse.cli import parse
from stillhouse.images.files import read_picture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python")
    names: dict[str, object] = {}
    exec(code, names)
    result = names["result"]
    assert isinstance(result, stillhouse.ImageResult)
    assert np.array_equal(read_picture("still.png"), result.image)
    assert stillhouse.read_request("still.png").seed == result.request.seed


def test_the_first_screen_holds_the_code() -> None:
    assert README[: README.index("```python")].count("\n") < 25


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("stillhouse ")])
def test_every_command_exists_with_its_options(line: str) -> None:
    assert parse(shlex.split(line, comments=True)[1:]).run


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_every_make_target_exists(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
