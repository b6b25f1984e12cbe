"""Factors: a file of some megabytes, by which a low-rank student differs from its teacher, is put on a teacher again.

It is all that a service keeps of each of many students; a pipeline is made of it where one is to be served.
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
from stillhouse.json_decode import DecodeError, decode
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Distilled, Manifest, files_checksum, read_manifest


def apply_lora(source: str | Path, file: Path, out: Path, *, force: bool = False) -> Manifest:
    """Write the student that a teacher becomes by these factors.

    They may have been learnt from another model of the same shape, as fine-tuned models of one base are: whether they
    serve this one is to be judged.

    Args:
        source: the teacher: a pipeline directory, or an embedded model's name.
        file: `student_lora.safetensors`, as it lies beside a student that learnt with `--lora`.
        out: directory of the student.
        force: replace a pipeline that stands there.

    Raises:
        InvalidRequest: no such factors, or of a network of another shape.
        ImportFailed: `out` is taken.
        FitFailed: there is no room for it.
    """
    kept, about, prediction = _read_lora_file(file)
    directory = find_pipeline(source)
    manifest = read_manifest(directory)
    if manifest.prediction != prediction:
        given = f"{file} on {manifest.name}, whose network tells {manifest.prediction}"
        raise InvalidRequest(given, allowed=f"models that tell {prediction}, as {about.teacher[0]} does")
    teacher = open_teacher(directory, manifest)
    rank = min(tensor.shape[0] for name, tensor in kept.items() if "lora_A" in name)
    unet = add_lora(add_guidance_embedding(teacher.unet), rank, 0)
    own = {name: tuple(tensor.shape) for name, tensor in lora_state_dict(unet).items()}
    if own != {name: tuple(tensor.shape) for name, tensor in kept.items()}:
        given = f"{file} on {manifest.name}, whose network has another shape"
        raise InvalidRequest(given, allowed=f"models like {about.teacher[0]}, from which they were learnt")
    load_lora(unet, kept)
    schedule, meaning = student_parameterization(teacher)
    student = Student(
        name=out.name,
        denoiser=Denoiser(fused_copy(unet).cpu(), schedule, meaning),
        lora_weights=kept,
        grid=None if about.timesteps is None else grid_from_timesteps(schedule, about.timesteps),
        method=about.method,
        fitted=FitResult(True, 0, 0.0, {}),
        edit_grids={edit.strength: grid_from_timesteps(schedule, edit.timesteps) for edit in about.edits},
    )
    told = {
        "factors": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "learnt from": about.teacher[0],
        "is their teacher": about.teacher[1] == files_checksum(manifest),
    }
    return write_student(directory, student, out, guidance=about.guidance, evidence=told, force=force)


def _read_lora_file(file: Path) -> tuple[Mapping[str, Tensor], Distilled, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata() or {}
            kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return kept, decode(Distilled, json.loads(told[DISTILLED_KEY])), told[TEACHER_PREDICTION_KEY]
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {file}") from None
    except (OSError, SafetensorError, KeyError, ValueError, DecodeError) as error:
        allowed = "student_lora.safetensors of a student that learnt with `--lora`"
        raise InvalidRequest(f"{file} holds no factors of a student: {error}", allowed=allowed) from None
