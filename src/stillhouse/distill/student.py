"""A student becomes a pipeline directory: its teacher's, with another U-Net, and with the one way to run it."""

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.convert.export import export_decoder
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.convert.staging import staged
from stillhouse.diffusion import Schedule, TimestepGrid
from stillhouse.distill import step_plan
from stillhouse.distill.training.decoder import TinyDecoder
from stillhouse.distill.training.progressive_chain import Student
from stillhouse.errors import FitFailed
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import (
    MANIFEST,
    Component,
    Distilled,
    Edit,
    Manifest,
    files_checksum,
    read_manifest,
    write_manifest,
)

_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
LORA_FILE = "student_lora.safetensors"
"""What a low-rank student differs by from its teacher; the pipeline itself needs no such file, see `factors`."""
DISTILLED_KEY = "stillhouse.distilled"
"""In its metadata: `manifest.Distilled` as JSON."""
TEACHER_PREDICTION_KEY = "stillhouse.teacher"
"""In its metadata: what the output of the teacher's network means."""
DECODER_FOLDER = "tiny_decoder"
_GRAPH, _WEIGHTS = "model.onnx", "model.safetensors"
_NOT_COPIED = ("unet", "trials", LORA_FILE, DECODER_FOLDER)
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_student(
    teacher: str | Path,
    student: Student,
    out: Path,
    *,
    guidance: tuple[float, float],
    decoder: TinyDecoder | None = None,
    evidence: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Manifest:
    """Write a student; the directory appears whole, or not at all.

    Args:
        teacher: pipeline directory, or an embedded model's name.
        student: what learnt.
        out: directory to write.
        guidance: the scales that it was taught.
        decoder: draws instead of the autoencoder's, here; diffusers does not know it.
        evidence: what was measured on the way; goes into the manifest under `distill`.
        force: replace a pipeline that stands there.

    Raises:
        ImportFailed: `out` is taken.
        FitFailed: there is no room for it, or no right to write it.
    """
    try:
        return _write(teacher, student, out, guidance, decoder, evidence or {}, force)
    except (OSError, SafetensorError) as error:
        fix = "make room; what was learnt is kept, and the same command goes on"
        raise FitFailed(f"{out} cannot be written: {error}", fix=fix) from error


def _write(
    teacher: str | Path,
    student: Student,
    out: Path,
    guidance: tuple[float, float],
    decoder: TinyDecoder | None,
    evidence: Mapping[str, Any],
    force: bool,
) -> Manifest:
    directory = find_pipeline(teacher)
    before = read_manifest(directory)
    with staged(out, force=force) as stage, TemporaryDirectory(dir=stage.parent, prefix=".student-") as folder:
        source, made = Path(folder, "diffusers"), Path(folder, "pipeline")
        _write_diffusers(directory, before, student, source)
        manifest = import_model(source, made, ImportOptions(out.name, dtype=_unet_dtype(directory, before)))
        if student.grid is not None:
            _write_scheduler(made, student.grid, student.denoiser.prediction, before.schedule.train_steps)
        written = _student_manifest(manifest, before, student, guidance, evidence)
        if student.lora_weights:
            assert written.distilled is not None
            kept = {name: tensor.contiguous() for name, tensor in student.lora_weights.items()}
            about = {DISTILLED_KEY: json.dumps(asdict(written.distilled)), TEACHER_PREDICTION_KEY: before.prediction}
            save_file(kept, made / LORA_FILE, about)
        if decoder is not None:
            tiny = _write_decoder(decoder, manifest.latent.channels, made)
            written = replace(written, components={**written.components, "vae_decoder": tiny})
        write_manifest(made, written)
        shutil.copytree(made, stage, dirs_exist_ok=True)
    return read_manifest(out)


def _write_diffusers(directory: Path, teacher: Manifest, student: Student, target: Path) -> None:
    """The teacher's files, the student's U-Net, and a scheduler that says what that predicts."""
    ignored = shutil.ignore_patterns(*_NOT_COPIED, MANIFEST, "*.onnx", "*.html", "*.xlsx")
    shutil.copytree(directory, target, ignore=ignored)
    unet = student.denoiser.unet
    unet.to(memory_format=torch.contiguous_format).save_pretrained(target / "unet")
    config = json.loads((target / _SCHEDULER).read_text())
    if config["_class_name"] == step_plan.StepPlanScheduler.__name__:  # a student's, which tells no schedule
        config = _ddim_config(teacher.schedule)
        index = json.loads((target / _INDEX).read_text())
        (target / _INDEX).write_text(json.dumps({**index, "scheduler": ["diffusers", config["_class_name"]]}))
    config |= {
        "prediction_type": student.denoiser.prediction,
        "rescale_betas_zero_snr": student.denoiser.schedule.zero_terminal_snr,
        "timestep_spacing": "trailing",
    }
    (target / _SCHEDULER).write_text(json.dumps(config, indent=2) + "\n")


def _ddim_config(schedule: Schedule) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_schedule": schedule.kind,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "num_train_timesteps": schedule.train_steps,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _write_decoder(decoder: TinyDecoder, channels: int, directory: Path) -> Component:
    folder = directory / DECODER_FOLDER
    folder.mkdir()
    copy = deepcopy(decoder).cpu()
    save_file({name: tensor.half().contiguous() for name, tensor in copy.state_dict().items()}, folder / _WEIGHTS)
    export_decoder(copy, channels, folder / _GRAPH, folder / _WEIGHTS)
    return Component(f"{DECODER_FOLDER}/{_GRAPH}", f"{DECODER_FOLDER}/{_WEIGHTS}")


def _unet_dtype(directory: Path, teacher: Manifest) -> str:
    """The dtype of the teacher's U-Net on disk."""
    layout = read_safetensors_index(directory / teacher.components["unet"].weights)
    return _DTYPES[next(iter(layout.values())).dtype]


def _write_scheduler(directory: Path, grid: TimestepGrid, prediction: str, train_steps: int) -> None:
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


def _student_manifest(
    manifest: Manifest,
    teacher: Manifest,
    student: Student,
    guidance: tuple[float, float],
    evidence: Mapping[str, Any],
) -> Manifest:
    timesteps = None if student.grid is None else tuple(student.grid.timesteps.tolist())
    edits = tuple(Edit(strength, tuple(one.timesteps.tolist())) for strength, one in student.edit_grids.items())
    steps = teacher.defaults.steps if timesteps is None else len(timesteps)
    scale = min(max(teacher.defaults.guidance, guidance[0]), guidance[1])
    return replace(
        manifest,
        defaults=replace(teacher.defaults, steps=steps, guidance=scale, sampler="ddim"),
        distilled=Distilled(timesteps, guidance, student.method, (teacher.name, files_checksum(teacher)), edits),
        source={**teacher.source, "made by": "stillhouse distill"},
        evidence={"distill": dict(evidence)},
        components={
            name: _with_teacher_backend(name, component, teacher) for name, component in manifest.components.items()
        },
    )


def _with_teacher_backend(name: str, component: Component, teacher: Manifest) -> Component:
    """Run by the engine that runs the teacher's, as it is run there."""
    known = teacher.components[name]
    return replace(component, backend=known.backend, streams=known.streams)
