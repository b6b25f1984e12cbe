"""`stillhouse distill`: options win over the file; mistakes exit with 2; who runs out of time is told how to go on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stillhouse.cli import main, parse
from stillhouse.cli.distill import make_distill_settings
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.images.png import write_png
from stillhouse.pipelines.manifest import read_manifest
from tests.checkpoints import write_checkpoint

QUICK = ("--rounds", "4,2", "--guidance", "1..6", "--items", "2", "--updates", "2", "--batch", "2")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    write_checkpoint("sd2", folder / "checkpoint")
    import_model(folder / "checkpoint", folder / "tiny", ImportOptions("tiny"))
    (folder / "prompts.txt").write_text("a red circle\n")
    return str(folder / "tiny")


def prompts(teacher: str) -> list[str]:
    return ["--prompts", str(Path(teacher).with_name("prompts.txt"))]


def test_a_student_is_made_and_its_name_told(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", teacher, "-o", "student", *QUICK, *prompts(teacher)]) == 0
    told = capsys.readouterr().out
    assert "student  2 steps; logs and strips in student.work" in told and "guidance 2: agreement" in told
    assert main(["generate", "a red circle", "--model", "student", "--out", "one.png"]) == 0
    assert (tmp_path / "one.png").exists()
    assert main(["distill", teacher, "-o", "student", *QUICK, *prompts(teacher)]) == 2
    assert "holds a pipeline already" in capsys.readouterr().err


def test_options_win_over_the_file(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a blue square\n")
    Path("distill.toml").write_text(
        'rounds = [4, 2]\nguidance = [2, 3]\nprompts = "prompts.txt"\nitems = 2\n[learning]\nupdates = 9\nbatch = 2\n'
    )
    assert main(["distill", teacher, "-o", "out", "--config", "distill.toml", "--updates", "2", "--lora", "1"]) == 0
    evidence = read_manifest(Path("out")).evidence["distill"]
    assert [one["updates"] for one in evidence["students"]] == [2, 2]
    assert evidence["settings"]["guidance"] == [2, 3] and evidence["settings"]["rank"] == 1


def test_who_runs_out_of_time_is_told_how_to_go_on(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", teacher, "-o", str(tmp_path / "out"), *QUICK, *prompts(teacher)]
    assert main([*command, "--max-hours", "0.000001"]) == 1
    assert "the same command goes on" in capsys.readouterr().out
    assert main(command) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "35"], "allowed: two counts of steps or more: 36,18,9,3"),
        (["--rounds", "9,18"], "none larger than the one before"),
        (["--rounds", "1,1"], "a teacher that takes one step"),
        (["--guidance", "5"], "allowed: the least and the most scale: 1..8"),
        (["--guidance", "5..2"], "the most guidance"),
        (["--method", "progresive"], "did you mean 'progressive'"),
        (["--data", "nowhere"], "nowhere is no folder"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--config", "none.toml"], "there is no file none.toml"),
        ([], "allowed: --data FOLDER, --data shapes, or --prompts FILE"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_made(
    teacher: str, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", teacher, "-o", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_teacher_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "nowhere", "-o", str(tmp_path / "out")]) == 2
    assert "there is no model 'nowhere'" in capsys.readouterr().err


def test_two_processes_make_one_student_and_one_of_them_tells(teacher: str, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stillhouse", "distill"]
    command = [sys.executable, *launch, teacher, "-o", str(tmp_path / "out"), *QUICK, *prompts(teacher)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 steps; logs and strips in") == 1
    evidence = read_manifest(tmp_path / "out").evidence["distill"]
    assert evidence["processes"] == 2 and evidence["items"] == 2


def test_what_is_said_on_the_command_line_wins_over_every_student_of_the_file(teacher: str, tmp_path: Path) -> None:
    file = tmp_path / "distill.toml"
    file.write_text('rounds = [4, 2]\ndata = "shapes"\n[students.2]\nupdates = 99\nbatch = 3\n')
    arguments = parse(["distill", teacher, "-o", "x", "--config", str(file), "--updates", "5", *prompts(teacher)])
    settings = make_distill_settings(arguments)
    assert settings.recipe("2", 0).updates == settings.recipe("guidance", 0).updates == 5
    assert settings.recipe("2", 0).batch_size == 3 and settings.data == "teacher"


def test_what_is_skipped_is_named_and_counted(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        write_png(pictures / f"{number}.png", np.full((32, 32, 3), 20 * number, np.uint8))
    (pictures / "0.txt").write_text("grey")
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("what it would have been")
    assert main(["distill", teacher, "-o", str(tmp_path / "out"), *QUICK, "--data", str(pictures)]) == 0
    told = capsys.readouterr().out
    assert "skipped 1.png: has no caption" in told and told.count("has no caption") == 5
    assert f"8 pictures were skipped; all are named in {tmp_path / 'out.work'}/*/skipped.csv" in told
    (named,) = (tmp_path / "out.work").glob("*/skipped.csv")
    assert "broken.png" in named.read_text() and len(named.read_text().splitlines()) == 9
