"""A student becomes a pipeline directory: its teacher's, with another U-Net, and with the one way to run it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stillhouse.backends.weights import safetensors_layout
from stillhouse.diffusion import Grid
from stillhouse.distill import step_plan
from stillhouse.distill.chain import Student
from stillhouse.models.importers import ImportOptions, import_model
from stillhouse.models.importers.staging import staged
from stillhouse.models.load import find
from stillhouse.models.manifest import MANIFEST, Distilled, Manifest, checksum, read_manifest, write_manifest

_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
_LEFT = ("unet", "trials")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_student(
    teacher: str | Path,
    student: Student,
    out: Path,
    *,
    guidance: tuple[float, float],
    method: str,
    evidence: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Manifest:
    """Write a student; the directory appears whole, or not at all.

    Args:
        teacher: pipeline directory, or an embedded model's name.
        student: what learnt.
        out: directory to write.
        guidance: the scales that it was taught.
        method: what taught it.
        evidence: what was measured on the way; goes into the manifest under `distill`.
        force: replace a pipeline that stands there.

    Raises:
        ImportFailed: `out` is taken.
    """
    directory = find(teacher)
    before = read_manifest(directory)
    with staged(out, force=force) as stage, TemporaryDirectory(dir=stage.parent, prefix=".student-") as folder:
        source, made = Path(folder, "diffusers"), Path(folder, "pipeline")
        _as_diffusers(directory, student, source)
        manifest = import_model(source, made, ImportOptions(out.name, dtype=_stored(directory, before)))
        if student.grid is not None:
            _plan(made, student.grid, student.denoiser.prediction, before.schedule.train_steps)
        write_manifest(made, _manifest(manifest, before, student, guidance, method, evidence or {}))
        shutil.copytree(made, stage, dirs_exist_ok=True)
    return read_manifest(out)


def _as_diffusers(directory: Path, student: Student, target: Path) -> None:
    """The teacher's files, the student's U-Net, and a scheduler that says what that predicts."""
    ignored = shutil.ignore_patterns(*_LEFT, MANIFEST, "*.onnx", "*.html", "*.xlsx")
    shutil.copytree(directory, target, ignore=ignored)
    unet = student.denoiser.unet
    unet.to(memory_format=torch.contiguous_format).save_pretrained(target / "unet")
    config = json.loads((target / _SCHEDULER).read_text())
    config |= {
        "prediction_type": student.denoiser.prediction,
        "rescale_betas_zero_snr": student.denoiser.schedule.zero_terminal_snr,
        "timestep_spacing": "trailing",
    }
    (target / _SCHEDULER).write_text(json.dumps(config, indent=2) + "\n")


def _stored(directory: Path, teacher: Manifest) -> str:
    """The dtype of the teacher's U-Net on disk."""
    layout = safetensors_layout(directory / teacher.components["unet"].weights)
    return _DTYPES[next(iter(layout.values())).dtype]


def _plan(directory: Path, grid: Grid, prediction: str, train_steps: int) -> None:
    """For diffusers: a scheduler that walks the student's grid and no other."""
    levels = {"plan": grid.timesteps, "alphas": grid.alphas[:-1], "sigmas": grid.sigmas[:-1]}
    config = {
        "_class_name": step_plan.StepPlanScheduler.__name__,
        **{name: level.tolist() for name, level in levels.items()},
        "prediction_type": prediction,
        "num_train_timesteps": train_steps,
    }
    (directory / _SCHEDULER).write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(str(step_plan.__file__), directory / "scheduler" / "step_plan.py")
    index = json.loads((directory / _INDEX).read_text())
    index["scheduler"] = ["step_plan", step_plan.StepPlanScheduler.__name__]
    (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _manifest(
    manifest: Manifest,
    teacher: Manifest,
    student: Student,
    guidance: tuple[float, float],
    method: str,
    evidence: Mapping[str, Any],
) -> Manifest:
    timesteps = None if student.grid is None else tuple(student.grid.timesteps.tolist())
    steps = teacher.defaults.steps if timesteps is None else len(timesteps)
    body = {name: str(record.sha256) for name, record in teacher.files.items()}
    scale = min(max(teacher.defaults.guidance, guidance[0]), guidance[1])
    return replace(
        manifest,
        defaults=replace(teacher.defaults, steps=steps, guidance=scale, sampler="ddim"),
        distilled=Distilled(timesteps, guidance, method, (teacher.name, checksum(body))),
        source={**teacher.source, "made by": "stillhouse distill"},
        evidence={"distill": dict(evidence)},
        components={
            name: replace(component, backend=teacher.components[name].backend)
            for name, component in manifest.components.items()
        },
    )
