"""What a low-rank student learnt is a small file, and makes the same student of the same teacher again."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stillhouse.cli import main
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.diffusion import Prediction
from stillhouse.distill.apply_lora import apply_lora
from stillhouse.distill.run import distill
from stillhouse.distill.settings import DistillSettings, LearningOverrides
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from tests.checkpoints import write_checkpoint
from tests.distill.test_run import RecordingProgress

LORA_FILE = "student_lora.safetensors"


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, its low-rank student, and one that was tuned on from the same teacher."""
    folder = tmp_path_factory.mktemp("made")
    for name, kind in (("teacher", request.param), ("tuned", request.param), ("large", "xl")):
        write_checkpoint(kind, folder / f"{name}-checkpoint")
        if name == "tuned":
            (weights,) = (folder / "tuned-checkpoint" / "unet").glob("*.safetensors")
            save_file({key: 1.01 * tensor for key, tensor in load_file(weights).items()}, weights)
        import_model(folder / f"{name}-checkpoint", folder / name, ImportOptions(name))
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


def test_the_same_teacher_becomes_the_same_student_to_the_bit(made: Path, tmp_path: Path) -> None:
    student = read_manifest(made / "student")
    again = apply_lora(made / "teacher", made / "student" / LORA_FILE, tmp_path / "again")
    assert again.distilled == student.distilled and again.schedule == student.schedule
    assert again.defaults == student.defaults and again.prediction == student.prediction
    assert again.evidence["distill"]["is their teacher"] and again.evidence["distill"]["learnt from"] == "teacher"
    assert np.array_equal(generate_picture(tmp_path / "again"), generate_picture(made / "student"))
    assert not np.array_equal(generate_picture(tmp_path / "again"), generate_picture(made / "teacher"))
    one, other = (load_file(folder / LORA_FILE) for folder in (made / "student", tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_that_was_tuned_on_from_it_becomes_one_too(made: Path, tmp_path: Path) -> None:
    told = apply_lora(made / "tuned", made / "student" / LORA_FILE, tmp_path / "tuned-3").evidence["distill"]
    assert not told["is their teacher"] and told["learnt from"] == "teacher"
    assert not np.array_equal(generate_picture(tmp_path / "tuned-3"), generate_picture(made / "student"))


def test_a_network_of_another_shape_is_refused(made: Path, tmp_path: Path) -> None:
    told = "on large, whose network (has another shape; allowed: models like teacher|tells epsilon; allowed: models)"
    with pytest.raises(InvalidRequest, match=told):
        apply_lora(made / "large", made / "student" / LORA_FILE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_tells_another_thing_is_refused(made: Path, tmp_path: Path) -> None:
    """Of one shape are Stable Diffusion 2's two kinds: one tells noise, the other velocity."""
    teacher = read_manifest(made / "teacher")
    other: Prediction = "epsilon" if teacher.prediction == "v_prediction" else "v_prediction"
    shutil.copytree(made / "teacher", tmp_path / "other")
    write_manifest(tmp_path / "other", replace(teacher, prediction=other))
    told = f"whose network tells {other}; allowed: models that tell {teacher.prediction}, as teacher does"
    with pytest.raises(InvalidRequest, match=told):
        apply_lora(tmp_path / "other", made / "student" / LORA_FILE, tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"no factors"])
def test_what_holds_no_factors_is_refused(made: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "factors").write_bytes(content)
    told = "there is no file" if content is None else "holds no factors of a student"
    with pytest.raises(InvalidRequest, match=told):
        apply_lora(made / "teacher", tmp_path / "factors", tmp_path / "out")
    with pytest.raises(InvalidRequest, match="holds no factors of a student"):
        apply_lora(made / "teacher", next((made / "student" / "unet").glob("*.safetensors")), tmp_path / "out")


def test_on_the_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", str(made / "teacher"), "-o", str(tmp_path / "out")]
    assert main([*command, "--factors", str(made / "student" / LORA_FILE)]) == 0
    assert f"stillhouse judge {tmp_path / 'out'} --against {made / 'teacher'}" in capsys.readouterr().out
    for words in (["--updates", "3"], ["--rounds", "4,2"], ["--all"], ["--work", "x"]):
        assert main([*command, "--factors", str(made / "student" / LORA_FILE), *words]) == 2
        assert "options of learning beside --factors\n  allowed: -o and --force" in capsys.readouterr().err
