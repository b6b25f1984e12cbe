"""Student directories: the same pictures here and in diffusers, on the student's grid only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from stillhouse.diffusion import grid_from_timesteps
from stillhouse.distill.student import write_student
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding
from stillhouse.distill.training.progressive_chain import Student, freeze
from stillhouse.errors import FitFailed, ImportFailed, InvalidRequest
from stillhouse.fit.stage import FitResult
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import read_manifest
from tests.conftest import Checkpoint
from tests.disk import limit_file_size

PLAN = (999.0, 656.0, 342.0)


@pytest.fixture(scope="module")
def teacher(imported: Checkpoint) -> Path:
    return imported("sd2")


@pytest.fixture(scope="module")
def written(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = read_manifest(teacher)
    unet = add_guidance_embedding(UNet2DConditionModel.from_pretrained(teacher / "unet"))
    torch.manual_seed(3)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.2)
    student = Student(
        "3-steps",
        freeze(Denoiser(unet, manifest.sampling.schedule, manifest.sampling.prediction)),
        {},
        grid_from_timesteps(manifest.sampling.schedule, PLAN),
        "progressive",
        FitResult(True, 5, 1.0, {}),
    )
    out = tmp_path_factory.mktemp("student") / "tiny-3"
    write_student(teacher, student, out, guidance=(1.0, 8.0), evidence={"rounds": [35, 3]})
    return out


def test_the_manifest_has_the_grid_and_the_teacher(written: Path) -> None:
    manifest = read_manifest(written, verify=True)
    assert manifest.distilled is not None and manifest.distilled.timesteps == PLAN
    assert manifest.distilled.teacher[0] == "sd2" and manifest.family_options["guidance_channels"] == 256
    assert (manifest.defaults.steps, manifest.evidence["distill"]) == (3, {"rounds": [35, 3]})


def test_a_picture_has_one_row_a_step_and_other_step_counts_are_refused(written: Path) -> None:
    pipeline = load(written)
    trajectory = pipeline.start(pipeline.resolve(request := pipeline.generate("a red circle", seed=1).request))
    assert (trajectory.evaluation_count, trajectory.rows) == (3, 1) and request.steps == 3
    with pytest.raises(InvalidRequest, match="which it was distilled to"):
        pipeline.generate("a red circle", steps=35)


@pytest.mark.parametrize("guidance", [1.5, 6.0])
def test_diffusers_generates_the_same_picture(written: Path, guidance: float) -> None:
    """diffusers uses the scheduler in the student's directory."""
    pipeline = load(written)
    shape = (1, 4, pipeline.manifest.defaults.height // 4, pipeline.manifest.defaults.width // 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    diffusers_pipeline = StableDiffusionPipeline.from_pretrained(written, trust_remote_code=True)
    diffusers_pipeline.set_progress_bar_config(disable=True)
    expected = diffusers_pipeline(
        "a red circle", num_inference_steps=3, guidance_scale=guidance, latents=noise.clone(), output_type="np"
    ).images[0]
    request = pipeline.resolve(pipeline.generate("a red circle", guidance=guidance).request)
    trajectory = pipeline.start(request, noise=noise[0].numpy())
    while not trajectory.is_done:
        pipeline.advance([trajectory])
    picture = pipeline.finish(trajectory).image
    assert np.abs(picture.astype(int) - np.round(expected * 255).astype(int)).max() <= 1
    with pytest.raises(ValueError, match="which this network was distilled to"):
        diffusers_pipeline("a red circle", num_inference_steps=10)


@pytest.fixture
def first(teacher: Path) -> Student:
    manifest = read_manifest(teacher)
    unet = add_guidance_embedding(UNet2DConditionModel.from_pretrained(teacher / "unet"))
    denoiser = Denoiser(unet, manifest.sampling.schedule, manifest.sampling.prediction)
    return Student("guidance", denoiser, {}, None, "guidance", FitResult(True, 5, 1.0, {}))


def test_an_existing_pipeline_is_not_replaced(teacher: Path, written: Path, first: Student) -> None:
    before = read_manifest(written)
    with pytest.raises(ImportFailed, match="holds a pipeline already"):
        write_student(teacher, first, written, guidance=(1.0, 8.0))
    assert read_manifest(written) == before


@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 1 << 18])
def test_a_full_disk_raises_and_leaves_nothing(teacher: Path, first: Student, tmp_path: Path, size: int) -> None:
    with (
        limit_file_size(size),
        pytest.raises(FitFailed, match=r"student cannot be written: .*; make room, then run the same command"),
    ):
        write_student(teacher, first, tmp_path / "student", guidance=(1.0, 8.0))
    assert not list(tmp_path.iterdir())
