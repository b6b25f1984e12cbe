"""`stillhouse distill`: options override the file, mistakes exit with 2, and a time limit exits with 1."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stillhouse.cli import main, parse
from stillhouse.cli.distill import make_distill_settings
from stillhouse.images.files import write_png
from stillhouse.pipelines.manifest import read_manifest
from tests.conftest import Checkpoint

QUICK = ("--step-counts", "4,2", "--guidance", "1..6", "--samples", "2", "--updates", "2", "--batch-size", "2")


@pytest.fixture(scope="module")
def teacher(smallest: Checkpoint) -> str:
    return str(smallest("sd2"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a red circle\n")
    return ["--prompts", str(file)]


def test_a_student_is_written_and_its_directory_printed(
    teacher: str,
    prompts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", teacher, "-o", "student", *QUICK, *prompts]) == 0
    output = capsys.readouterr().out
    assert "student  2 steps; logs and previews in student.work" in output and "guidance 2: latent_psnr" in output
    assert main(["generate", "a red circle", "--model", "student", "--out", "one.png"]) == 0
    assert (tmp_path / "one.png").exists()
    assert main(["distill", teacher, "-o", "student", *QUICK, *prompts]) == 2
    assert "holds a pipeline already" in capsys.readouterr().err


def test_options_override_the_file(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a blue square\n")
    Path("distill.toml").write_text(
        'step_counts = [4, 2]\nguidance = [2, 3]\nprompts = "prompts.txt"\nsamples = 2\n'
        "[learning]\nupdates = 9\nbatch_size = 2\n"
    )
    assert main(["distill", teacher, "-o", "out", "--config", "distill.toml", "--updates", "2", "--lora", "1"]) == 0
    evidence = read_manifest(Path("out")).evidence["distill"]
    assert [student["updates"] for student in evidence["students"]] == [2, 2]
    assert evidence["settings"]["guidance"] == [2, 3] and evidence["settings"]["lora_rank"] == 1


def test_a_passed_time_limit_prints_how_to_resume(
    teacher: str, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", teacher, "-o", str(tmp_path / "out"), *QUICK, *prompts]
    assert main([*command, "--max-hours", "0.000001"]) == 1
    assert "run the same command to resume" in capsys.readouterr().out
    assert main(command) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step-counts", "35"], "allowed: two step counts or more: 36,18,9,3"),
        (["--step-counts", "9,18"], "none larger than the one before"),
        (["--step-counts", "1,1"], "a teacher of one step"),
        (["--guidance", "5"], "allowed: the smallest and the largest scale: 1..8"),
        (["--guidance", "5..2"], "the largest guidance"),
        (["--method", "progresive"], "did you mean 'progressive'"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--config", "none.toml"], "there is no file none.toml"),
        ([], "allowed: --data FOLDER, --data shapes, or --prompts FILE"),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(
    teacher: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", teacher, "-o", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_missing_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "nowhere", "-o", str(tmp_path / "out")]) == 2
    assert "there is no model 'nowhere'" in capsys.readouterr().err


def test_two_processes_write_one_student_and_one_of_them_reports(
    teacher: str, prompts: list[str], tmp_path: Path
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stillhouse", "distill"]
    command = [sys.executable, *launch, teacher, "-o", str(tmp_path / "out"), *QUICK, *prompts]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 steps; logs and previews in") == 1
    evidence = read_manifest(tmp_path / "out").evidence["distill"]
    assert evidence["processes"] == 2 and evidence["items"] == 2


def test_options_override_every_student_of_the_file(teacher: str, prompts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "distill.toml"
    file.write_text('step_counts = [4, 2]\ndata = "shapes"\n[students.2]\nupdates = 99\nbatch_size = 3\n')
    arguments = parse(["distill", teacher, "-o", "x", "--config", str(file), "--updates", "5", *prompts])
    settings = make_distill_settings(arguments)
    assert settings.recipe("2", 0).updates == settings.recipe("guidance", 0).updates == 5
    assert settings.recipe("2", 0).batch_size == 3 and settings.data == "teacher"


def test_skipped_pictures_are_named_and_counted(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        write_png(pictures / f"{number}.png", np.full((32, 32, 3), 20 * number, np.uint8))
    (pictures / "0.txt").write_text("grey")
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("what it would have been")
    assert main(["distill", teacher, "-o", str(tmp_path / "out"), *QUICK, "--data", str(pictures)]) == 0
    output = capsys.readouterr().out
    assert "skipped 1.png: has no caption" in output and output.count("has no caption") == 5
    assert f"8 pictures were skipped; the list is in {tmp_path / 'out.work'}/*/skipped.csv" in output
    (file,) = (tmp_path / "out.work").glob("*/skipped.csv")
    assert "broken.png" in file.read_text() and len(file.read_text().splitlines()) == 9
