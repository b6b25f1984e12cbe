"""The installed program with the embedded model, in separate processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.images.files import read_request


def stillhouse(here: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse", *argv]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)


def test_a_picture_and_its_request(tmp_path: Path) -> None:
    done = stillhouse(tmp_path, "generate", "a big red circle on a yellow background", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert read_request(tmp_path / message["file"]).seed == 7
    assert message["width"] == message["height"] == 64


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        assert stillhouse(tmp_path, "generate", "a cross", "--steps", "4", "--out", name).returncode == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("--steps 0", "steps is 0"),
        ("--sampler dim", "dim"),
        ("--model nothing", "nothing"),
        ("--size 63x64", "63"),
        ("--backend tensorflow", "tensorflow"),
        ("--precision f8", "f8"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(tmp_path: Path, argv: str, problem: str) -> None:
    done = stillhouse(tmp_path, "generate", "a cross", *argv.split())
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_over_long_prompt_is_cut_with_a_warning(tmp_path: Path) -> None:
    done = stillhouse(tmp_path, "generate", "a red circle " * 60, "--steps", "2")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "cut off" in done.stderr
