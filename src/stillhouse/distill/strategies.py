"""The two distillation strategies: a progressive chain of students, or regression on stored teacher trajectories."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from stillhouse.backends import backends
from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.image_folder import SkippedImage
from stillhouse.distill.data.latent_dataset import CachedLatents, encode_samples, wait_for_latents
from stillhouse.distill.data.sources import caption_sampler, open_samples
from stillhouse.distill.data.teacher_trajectories import (
    TrajectoryPlan,
    encode_trajectories,
    generate_trajectories,
    wait_for_trajectories,
)
from stillhouse.distill.settings import DistillSettings
from stillhouse.distill.training.networks import DENOISER_FOLDER, Denoiser
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, TrainingRun, plan_stages, train_chain
from stillhouse.distill.training.trajectory_chain import TRAJECTORIES, plan_student_grids, train_on_trajectories
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.pipeline import Pipeline

_DENOISER_GRAPH = f"{DENOISER_FOLDER}/model.onnx"
"""Path of the denoiser's graph in an imported pipeline."""
_GPU_BATCH = 256
"""Number of trajectories that are sampled at once on a GPU."""
_BF16_BACKEND = "openvino"
"""Backend that computes in bf16 on CPUs with bf16 units."""
_BF16_BATCH = 64
"""Number of trajectories that are sampled at once in bf16 on a CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingOutcome:
    """Result of a strategy.

    Args:
        students: the trained students in order of training; fewer than planned where the deadline passed.
        latents: clean latents of the training data.
        sample_count: number of training samples.
    """

    students: Sequence[Student]
    latents: CachedLatents
    sample_count: int


class Strategy(Protocol):
    """Data and training of the students of a teacher."""

    @property
    def data_kind(self) -> str:
        """Prefix of the data folder's name."""

    @property
    def student_names(self) -> Sequence[str]:
        """Names of the students in order of training."""

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """Return a function that maps a number n to the training samples from sample n on."""

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return a function that encodes samples into a shard."""

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """Train all students on the shards in a folder."""


@dataclass(frozen=True, slots=True)
class ProgressiveChain:
    """Strategy in which each student is the teacher of the next student; see `progressive_chain`.

    Args:
        teacher: teacher of the first student.
        recipe: hyper-parameters.
        teacher_grid: the only timestep grid of a distilled teacher; None: the teacher may be sampled on any grid.
    """

    teacher: Denoiser
    recipe: ChainRecipe
    teacher_grid: TimestepGrid | None

    @property
    def data_kind(self) -> str:
        """See `Strategy`."""
        return "latents"

    @property
    def student_names(self) -> Sequence[str]:
        """See `Strategy`."""
        return [plan.name for plan in plan_stages(self.teacher, self.recipe, self.teacher_grid)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Strategy`."""
        return open_samples(pipeline, settings, on_skipped)

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Strategy`."""
        return partial(encode_samples, pipeline)

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """See `Strategy`."""
        dataset = wait_for_latents(data_folder)
        students = train_chain(self.teacher, dataset, self.recipe, run, self.teacher_grid, data_folder.stem)
        return TrainingOutcome(students, dataset, len(dataset.latents))


@dataclass(frozen=True, slots=True)
class TrajectoryRegression:
    """Strategy that trains all students on the same trajectories of the teacher; see `trajectory_chain`.

    Args:
        teacher: the teacher's denoiser, which distribution matching evaluates.
        initial: denoiser with the initial weights of the first student.
        recipe: hyper-parameters.
        initial_checksum: checksum of the initial student's files; empty where the teacher is the initial student.
    """

    teacher: Denoiser
    initial: Denoiser
    recipe: ChainRecipe
    initial_checksum: str

    @property
    def data_kind(self) -> str:
        """See `Strategy`."""
        return TRAJECTORIES

    @property
    def student_names(self) -> Sequence[str]:
        """See `Strategy`."""
        return [f"{grids.grid.steps}-steps" for grids in plan_student_grids(self.initial, self.recipe)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Strategy`."""
        grids = plan_student_grids(self.initial, self.recipe)[0]
        plan = TrajectoryPlan(
            student_grid=grids.grid,
            teacher_steps=self.recipe.step_counts[0],
            count=settings.samples,
            guidance=self.recipe.guidance,
            seed=settings.seed,
            edit_grids=grids.edit_grids,
        )
        if torch.cuda.is_available():
            pipeline, plan = with_denoiser_on_gpu(pipeline), replace(plan, batch_size=_GPU_BATCH)
        elif supports_openvino_bf16():
            pipeline, plan = with_denoiser_in_bf16(pipeline), replace(plan, batch_size=_BF16_BATCH)
        return lambda start: generate_trajectories(pipeline, caption_sampler(settings, on_skipped), plan, start)

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Strategy`."""
        return partial(encode_trajectories, pipeline)

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """See `Strategy`."""
        dataset = wait_for_trajectories(data_folder)
        origin = f"{data_folder.stem} {self.initial_checksum}"
        students = train_on_trajectories(self.teacher, self.initial, dataset, self.recipe, run, origin)
        latents = CachedLatents(dataset.latents[:, -1], dataset.caption_rows[:, None], dataset.text_inputs, {})
        return TrainingOutcome(students, latents, len(dataset))


def with_denoiser_on_gpu(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that runs the unaccelerated denoiser in torch on the GPU in float32."""
    return _with_denoiser(pipeline, "torch", "f32", {"device": "cuda"})


def with_denoiser_in_bf16(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that runs the unaccelerated denoiser in OpenVINO in bf16, in half the time of float32.

    The PSNR between the embedded teacher's trajectories in bf16 and in float32 is 66 dB. The solver's own error is
    larger: 44 dB.
    """
    return _with_denoiser(pipeline, _BF16_BACKEND, "bf16", {})


def supports_openvino_bf16() -> bool:
    """Return whether OpenVINO is installed and computes in bf16 on this CPU."""
    return any(status.name == _BF16_BACKEND and "bf16" in status.precisions for status in backends())


def _with_denoiser(pipeline: Pipeline, backend: str, precision: str, settings: Mapping[str, str]) -> Pipeline:
    weights = pipeline.manifest.components["denoiser"].weights
    network = Component(_DENOISER_GRAPH, weights, backend, precision, settings=settings)
    manifest = replace(pipeline.manifest, step_cache=None)
    return Pipeline(pipeline.directory, manifest=manifest, components={"denoiser": network})
