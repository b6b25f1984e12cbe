"""Rebuild the pipeline of a student (distilled model) from its teacher and its LoRA file.

The file, `student_lora.safetensors`, has a few megabytes. A service with many fine-tuned models can store this file
instead of each student's pipeline.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillhouse.diffusion import grid_from_timesteps
from stillhouse.distill.run import open_teacher
from stillhouse.distill.student import DISTILLED_KEY, TEACHER_PREDICTION_KEY, write_student
from stillhouse.distill.training.low_rank import add_lora, fused_copy, load_lora, lora_state_dict
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding, student_parameterization
from stillhouse.distill.training.progressive_chain import Student
from stillhouse.errors import InvalidRequest
from stillhouse.fit.stage import FitResult
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Distilled, Manifest, files_checksum, read_manifest
from stillhouse.validation import InvalidDocument, convert


def apply_lora(source: str | Path, file: Path, out: Path, *, force: bool = False) -> Manifest:
    """Add the LoRA weights of an earlier distillation to a teacher, and write the resulting student's pipeline.

    The weights may come from the distillation of another fine-tuned model of the same base. In this case evaluate the
    student, because its quality is unknown.

    Args:
        source: the teacher: a pipeline directory, or the name of a model that ships with the package.
        file: `student_lora.safetensors` of a student that was trained with `--lora`.
        out: directory to write the student to.
        force: replace an existing pipeline.

    Returns:
        the manifest of the written pipeline.

    Raises:
        InvalidRequest: the file has no LoRA weights of a student, or the weights do not fit the teacher's network.
        ImportFailed: `out` already holds files, and `force` does not allow replacing them.
        FitFailed: the disk is full, or the directory is not writable.
    """
    weights, distilled, prediction = _read_lora_file(file)
    directory = find_pipeline(source)
    manifest = read_manifest(directory)
    if manifest.sampling.prediction != prediction:
        problem = f"{file} does not fit {manifest.name}, whose network predicts {manifest.sampling.prediction}"
        raise InvalidRequest(problem, allowed=f"models that predict {prediction}, as {distilled.teacher[0]} does")
    teacher = open_teacher(directory, manifest)
    rank = min(tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name)
    network = add_lora(add_guidance_embedding(teacher.network), rank, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in lora_state_dict(network).items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        problem = f"{file} does not fit {manifest.name}, whose network has layers of other shapes"
        allowed = f"models with the layers of {distilled.teacher[0]}, from which the file was distilled"
        raise InvalidRequest(problem, allowed=allowed)
    load_lora(network, weights)
    schedule, student_prediction = student_parameterization(teacher)
    student = Student(
        name=out.name,
        denoiser=Denoiser(fused_copy(network).cpu(), schedule, student_prediction),
        lora_weights=weights,
        grid=None if distilled.timesteps is None else grid_from_timesteps(schedule, distilled.timesteps),
        method=distilled.method,
        fitted=FitResult(True, 0, 0.0, {}),
        edit_grids={edit.strength: grid_from_timesteps(schedule, edit.timesteps) for edit in distilled.edits},
    )
    evidence = {
        "lora_file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "trained_on": distilled.teacher[0],
        "is_own_teacher": distilled.teacher[1] == files_checksum(manifest),
    }
    return write_student(directory, student, out, guidance=distilled.guidance, evidence=evidence, force=force)


def _read_lora_file(file: Path) -> tuple[Mapping[str, Tensor], Distilled, str]:
    """Read the LoRA file of a student.

    Returns:
        the weights by name, the student's allowed timesteps and guidance scales, and the teacher's prediction type.

    Raises:
        InvalidRequest: the file does not exist, or has no LoRA weights of a student.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return weights, convert(Distilled, json.loads(metadata[DISTILLED_KEY])), metadata[TEACHER_PREDICTION_KEY]
    except FileNotFoundError:
        allowed = "student_lora.safetensors of a student that was trained with `--lora`"
        raise InvalidRequest(f"there is no file {file}", allowed=allowed) from None
    except (OSError, SafetensorError, KeyError, ValueError, InvalidDocument) as error:
        allowed = "student_lora.safetensors of a student that was trained with `--lora`"
        raise InvalidRequest(f"{file} has no LoRA weights of a student: {error}", allowed=allowed) from None
