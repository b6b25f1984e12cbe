"""Write a student's pipeline directory: the teacher's files with the student's denoiser, scheduler and manifest."""

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
from stillhouse.distill.training.networks import DENOISER_FOLDER
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
"""Name of the file with a student's LoRA weights, for `apply_lora`; the student's pipeline runs without this file."""
DISTILLED_KEY = "stillhouse.distilled"
"""Key in the metadata of `LORA_FILE`; its value is the manifest's entry on the distillation, `Distilled`, as JSON."""
TEACHER_PREDICTION_KEY = "stillhouse.teacher"
"""Key in the metadata of `LORA_FILE`; its value is the prediction type of the teacher, such as "epsilon"."""
DECODER_FOLDER = "tiny_decoder"
_GRAPH, _WEIGHTS = "model.onnx", "model.safetensors"
_NOT_COPIED = (DENOISER_FOLDER, "trials", LORA_FILE, DECODER_FOLDER)
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
    """Write the pipeline directory of a student; an interrupted write leaves no partial directory.

    Args:
        teacher: the teacher's pipeline directory, or the name of a model that ships with the package.
        student: the trained student.
        out: directory to write.
        guidance: smallest and largest guidance scale that the student was trained for.
        decoder: tiny decoder that replaces the autoencoder's decoder, except when diffusers opens the directory; None:
            no tiny decoder.
        evidence: measurements of the training, written to `evidence["distill"]` of the manifest.
        force: replace an existing pipeline.

    Returns:
        the manifest of the written directory.

    Raises:
        ImportFailed: `out` already holds files, and `force` does not allow replacing them.
        FitFailed: the disk is full, or the directory is not writable.
    """
    try:
        return _write(teacher, student, out, guidance, decoder, evidence or {}, force)
    except (OSError, SafetensorError) as error:
        fix = "make room, then run the same command: training is not repeated"
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
    teacher_manifest = read_manifest(directory)
    with staged(out, force=force) as stage, TemporaryDirectory(dir=stage.parent, prefix=".student-") as folder:
        source, pipeline = Path(folder, "diffusers"), Path(folder, "pipeline")
        _write_diffusers(directory, teacher_manifest, student, source)
        options = ImportOptions(out.name, dtype=_denoiser_dtype(directory, teacher_manifest))
        imported = import_model(source, pipeline, options)
        if student.grid is not None:
            train_steps = teacher_manifest.sampling.schedule.train_steps
            _write_scheduler(pipeline, student.grid, student.denoiser.prediction, train_steps)
        manifest = _student_manifest(imported, teacher_manifest, student, guidance, evidence)
        if student.lora_weights:
            assert manifest.distilled is not None
            weights = {name: tensor.contiguous() for name, tensor in student.lora_weights.items()}
            metadata = {
                DISTILLED_KEY: json.dumps(asdict(manifest.distilled)),
                TEACHER_PREDICTION_KEY: teacher_manifest.sampling.prediction,
            }
            save_file(weights, pipeline / LORA_FILE, metadata)
        if decoder is not None:
            component = write_decoder(decoder, manifest.latent.channels, pipeline)
            manifest = replace(manifest, components={**manifest.components, "decoder": component})
        write_manifest(pipeline, manifest)
        shutil.copytree(pipeline, stage, dirs_exist_ok=True)
    return read_manifest(out)


def _write_diffusers(directory: Path, teacher: Manifest, student: Student, target: Path) -> None:
    """Copy the teacher's diffusers files to `target`, then write the student's denoiser and noise schedule over them.

    The networks' ONNX graphs and the manifest are not copied.

    Args:
        directory: the teacher's pipeline directory.
        teacher: the teacher's manifest.
        student: the trained student.
        target: directory to write.
    """
    ignored = shutil.ignore_patterns(*_NOT_COPIED, MANIFEST, "*.onnx", "*.html", "*.xlsx")
    shutil.copytree(directory, target, ignore=ignored)
    network = student.denoiser.network
    network.to(memory_format=torch.contiguous_format).save_pretrained(target / DENOISER_FOLDER)
    config = json.loads((target / _SCHEDULER).read_text())
    # A distilled teacher's own scheduler has no betas, from which `import_model` computes the noise schedule. A DDIM
    # configuration with betas therefore replaces the scheduler's configuration.
    if config["_class_name"] == step_plan.StepPlanScheduler.__name__:
        config = _ddim_config(teacher.sampling.schedule)
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


def write_decoder(decoder: TinyDecoder, channels: int, directory: Path) -> Component:
    """Write a tiny decoder of latents with `channels` channels into a pipeline's directory."""
    folder = directory / DECODER_FOLDER
    folder.mkdir()
    copy = deepcopy(decoder).cpu()
    save_file({name: tensor.half().contiguous() for name, tensor in copy.state_dict().items()}, folder / _WEIGHTS)
    export_decoder(copy, channels, folder / _GRAPH, folder / _WEIGHTS)
    return Component(f"{DECODER_FOLDER}/{_GRAPH}", f"{DECODER_FOLDER}/{_WEIGHTS}")


def _denoiser_dtype(directory: Path, teacher: Manifest) -> str:
    """Return the dtype of the denoiser's weights in the teacher's `directory`: float32, float16 or bfloat16."""
    layout = read_safetensors_index(directory / teacher.components["denoiser"].weights)
    return _DTYPES[next(iter(layout.values())).dtype]


def _write_scheduler(directory: Path, grid: TimestepGrid, prediction: str, train_steps: int) -> None:
    """Write the scheduler with which diffusers samples the student: its code, and its timesteps and noise levels.

    Args:
        directory: the student's pipeline directory.
        grid, prediction: timesteps and noise levels of the student, and its prediction type.
        train_steps: number of timesteps of the noise schedule.
    """
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
    edits = tuple(Edit(strength, tuple(grid.timesteps.tolist())) for strength, grid in student.edit_grids.items())
    steps = teacher.defaults.steps if timesteps is None else len(timesteps)
    scale = min(max(teacher.defaults.guidance, guidance[0]), guidance[1])
    return replace(
        manifest,
        defaults=replace(teacher.defaults, steps=steps, guidance=scale, sampler="ddim"),
        distilled=Distilled(timesteps, guidance, student.method, (teacher.name, files_checksum(teacher)), edits),
        source={**teacher.source, "made by": "stillhouse distill"},
        evidence={"distill": dict(evidence)},
        components={name: _with_teacher_backend(name, one, teacher) for name, one in manifest.components.items()},
    )


def _with_teacher_backend(name: str, component: Component, teacher: Manifest) -> Component:
    """Return a component (manifest entry of one network) with the backend and streams of the teacher's component.

    Args:
        name: role of the network, such as "denoiser".
        component: the student's component.
        teacher: the teacher's manifest, from which backend and streams are taken.
    """
    reference = teacher.components[name]
    return replace(component, backend=reference.backend, streams=reference.streams)
