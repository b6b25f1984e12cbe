"""A LoRA file gives the same student from the same teacher, and students of other fine-tuned models."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stillhouse.cli import main
from stillhouse.diffusion import Prediction
from stillhouse.distill.apply_lora import apply_lora
from stillhouse.distill.run import distill
from stillhouse.distill.settings import DistillSettings, LearningOverrides
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from tests.conftest import Checkpoint
from tests.distill.test_run import RecordingProgress

LORA_FILE = "student_lora.safetensors"


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def models(
    request: pytest.FixtureRequest, imported: Checkpoint, smallest: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a teacher, its low-rank student, and a fine-tuned copy of the teacher.

    sd1 has cross-attention in its first and last blocks too, sd2 in the middle only.
    """
    folder = tmp_path_factory.mktemp("models")
    source = (imported if request.param == "sd1" else smallest)(request.param)
    for name in ("teacher", "tuned"):
        shutil.copytree(source, folder / name)
        manifest = read_manifest(folder / name)
        if name == "tuned":
            (weights,) = (folder / "tuned" / "unet").glob("*.safetensors")
            save_file({key: 1.01 * tensor for key, tensor in load_file(weights).items()}, weights)
        write_manifest(folder / name, replace(manifest, name=name))
    (folder / "prompts.txt").write_text("a red circle\n")
    few = LearningOverrides(updates=2, batch_size=2, learning_rate=1e-2)
    settings = DistillSettings(
        step_counts=(6, 3),
        task="img2img",
        guidance=(1.0, 6.0),
        prompts=str(folder / "prompts.txt"),
        samples=3,
        eval_samples=2,
    )
    distill(
        folder / "teacher",
        folder / "student",
        replace(settings, lora_rank=2, learning=few),
        folder / "work",
        RecordingProgress(),
    )
    return folder


def generate_picture(directory: Path) -> np.ndarray:
    return load(directory).generate("a red circle", seed=3, guidance=4.0).image


def test_the_same_teacher_becomes_the_same_student_to_the_bit(models: Path, tmp_path: Path) -> None:
    student = read_manifest(models / "student")
    again = apply_lora(models / "teacher", models / "student" / LORA_FILE, tmp_path / "again")
    assert again.distilled == student.distilled and again.sampling.schedule == student.sampling.schedule
    assert again.defaults == student.defaults and again.sampling.prediction == student.sampling.prediction
    assert again.evidence["distill"]["is_own_teacher"] and again.evidence["distill"]["trained_on"] == "teacher"
    assert np.array_equal(generate_picture(tmp_path / "again"), generate_picture(models / "student"))
    assert not np.array_equal(generate_picture(tmp_path / "again"), generate_picture(models / "teacher"))
    first, second = (load_file(folder / LORA_FILE) for folder in (models / "student", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_fine_tuned_copy_of_the_teacher_becomes_a_student(models: Path, tmp_path: Path) -> None:
    student = apply_lora(models / "tuned", models / "student" / LORA_FILE, tmp_path / "tuned-3")
    evidence = student.evidence["distill"]
    assert not evidence["is_own_teacher"] and evidence["trained_on"] == "teacher"
    assert not np.array_equal(generate_picture(tmp_path / "tuned-3"), generate_picture(models / "student"))


def test_a_network_of_another_shape_is_refused(models: Path, smallest: Checkpoint, tmp_path: Path) -> None:
    message = (
        "does not fit xl, whose network (has layers of other shapes; allowed: models with the layers of|"
        "predicts epsilon; allowed: models)"
    )
    with pytest.raises(InvalidRequest, match=message):
        apply_lora(smallest("xl"), models / "student" / LORA_FILE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_of_another_prediction_type_is_refused(models: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2 has networks of one shape that predict epsilon and velocity."""
    teacher = read_manifest(models / "teacher")
    other: Prediction = "epsilon" if teacher.sampling.prediction == "v_prediction" else "v_prediction"
    shutil.copytree(models / "teacher", tmp_path / "other")
    write_manifest(tmp_path / "other", replace(teacher, sampling=replace(teacher.sampling, prediction=other)))
    message = (
        f"whose network predicts {other}; allowed: models that predict {teacher.sampling.prediction}, as teacher does"
    )
    with pytest.raises(InvalidRequest, match=message):
        apply_lora(tmp_path / "other", models / "student" / LORA_FILE, tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_without_lora_weights_is_refused(models: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "lora").write_bytes(content)
    message = "there is no file" if content is None else "has no LoRA weights of a student"
    with pytest.raises(InvalidRequest, match=message):
        apply_lora(models / "teacher", tmp_path / "lora", tmp_path / "out")
    with pytest.raises(InvalidRequest, match="has no LoRA weights of a student"):
        apply_lora(models / "teacher", next((models / "student" / "unet").glob("*.safetensors")), tmp_path / "out")


def test_on_the_command_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", str(models / "teacher"), "-o", str(tmp_path / "out")]
    assert main([*command, "--apply-lora", str(models / "student" / LORA_FILE)]) == 0
    assert f"stillhouse judge {tmp_path / 'out'} --against {models / 'teacher'}" in capsys.readouterr().out
    for words in (["--updates", "3"], ["--step-counts", "4,2"], ["--all"], ["--work", "x"]):
        assert main([*command, "--apply-lora", str(models / "student" / LORA_FILE), *words]) == 2
        error = capsys.readouterr().err
        assert "training options were given with --apply-lora, which trains nothing\n" in error
        assert "  allowed: only -o and --force with --apply-lora" in error
