"""The two ways to train students: each student teaches the next, or all learn from stored teacher trajectories."""

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
"""Path of the denoiser's ONNX graph in a pipeline directory, as `stillhouse import` writes it."""
_GPU_BATCH = 256
"""Number of teacher trajectories that are sampled in one batch on a GPU."""
_BF16_BACKEND = "openvino"
"""Name of the inference backend that computes in bf16 on CPUs with bf16 units."""
_BF16_BATCH = 64
"""Number of teacher trajectories that are sampled in one batch in bf16 on a CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingOutcome:
    """Result of `Strategy.train`.

    Args:
        students: the trained students in the order of training; fewer than planned where the deadline passed first.
        latents: clean latents of the training data with their captions; the tiny decoder is trained on them.
        sample_count: number of training samples: pictures, or teacher trajectories.
    """

    students: Sequence[Student]
    latents: CachedLatents
    sample_count: int


class Strategy(Protocol):
    """A way to distil a teacher: which data it needs, and how it trains the students."""

    @property
    def data_kind(self) -> str:
        """Prefix of the name of the folder that caches the training data, such as "latents"."""

    @property
    def student_names(self) -> Sequence[str]:
        """Names of the students in the order of training, such as "9-steps"."""

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """Return a function that maps a number n to the training samples from sample n on.

        Args:
            pipeline: the teacher.
            settings: which data, how many samples, and the seed.
            on_skipped: receives each picture that cannot be used.
        """

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return a function that encodes samples into the content of one cache file (shard): tensors by name."""

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """Wait until the shards (cached training data) in a folder are complete, then train all students on them.

        Args:
            data_folder: folder of the shards.
            run: folder of checkpoints, receivers of progress, and time limit.
        """


@dataclass(frozen=True, slots=True)
class ProgressiveChain:
    """Strategy that trains a chain of students, each with fewer steps: each student is the teacher of the next.

    Args:
        teacher: denoiser that is the teacher of the first student in the chain.
        recipe: hyper-parameters of all students.
        teacher_grid: where `teacher` is itself a distilled model, the only timesteps at which it may be sampled; None:
            `teacher` may be sampled at any timesteps.
    """

    teacher: Denoiser
    recipe: ChainRecipe
    teacher_grid: TimestepGrid | None

    @property
    def data_kind(self) -> str:
        """Prefix of the name of the folder that caches encoded pictures."""
        return "latents"

    @property
    def student_names(self) -> Sequence[str]:
        """Names of the students in the order of training, such as "guidance" and "9-steps"."""
        return [plan.name for plan in plan_stages(self.teacher, self.recipe, self.teacher_grid)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """Return a function that maps a number n to the training samples (captioned latents) from sample n on.

        Args:
            pipeline: the teacher, which encodes the pictures or generates them.
            settings: which data, how many samples, and the seed.
            on_skipped: receives each picture that cannot be used.
        """
        return open_samples(pipeline, settings, on_skipped)

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return a function that encodes captioned latents into the content of one cache file: tensors by name."""
        return partial(encode_samples, pipeline)

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """Wait until the encoded pictures in a folder are complete, then train the students one after the other.

        `run` gives the folder of checkpoints, the receivers of progress, and the time limit.
        """
        dataset = wait_for_latents(data_folder)
        students = train_chain(self.teacher, dataset, self.recipe, run, self.teacher_grid, data_folder.stem)
        return TrainingOutcome(students, dataset, len(dataset.latents))


@dataclass(frozen=True, slots=True)
class TrajectoryRegression:
    """Strategy that trains students one after the other on the same stored sampling trajectories of one teacher.

    The first student starts from the weights of `initial`, each later student from those of the student before.

    Args:
        teacher: the teacher's denoiser. The stored trajectories replace the teacher in training, except for students
            that are also trained by distribution matching (DMD), which evaluates the teacher.
        initial: denoiser from whose weights the training of the first student starts: the teacher, or a student of
            this teacher from an earlier distillation.
        recipe: hyper-parameters of all students.
        initial_checksum: checksum of the files of the pipeline that `initial` is from; empty where `initial` is the
            teacher.
    """

    teacher: Denoiser
    initial: Denoiser
    recipe: ChainRecipe
    initial_checksum: str

    @property
    def data_kind(self) -> str:
        """Prefix of the name of the folder that caches the teacher's trajectories."""
        return TRAJECTORIES

    @property
    def student_names(self) -> Sequence[str]:
        """Names of the students in the order of training, such as "9-steps"."""
        return [f"{grids.grid.steps}-steps" for grids in plan_student_grids(self.initial, self.recipe)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """Return a function that maps a number n to the teacher's trajectories from number n on.

        The function samples the trajectories with the teacher's denoiser: in float32 on a GPU where torch has one, else
        in bf16 where OpenVINO supports bf16 on this CPU, else as the pipeline's manifest says.

        Args:
            pipeline: the teacher.
            settings: source of the captions, number of trajectories, and the seed.
            on_skipped: receives each picture of a folder that cannot be used, and the reason.
        """
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
        """Return a function that encodes trajectories into the content of one cache file (shard): tensors by name."""
        return partial(encode_trajectories, pipeline)

    def train(self, data_folder: Path, run: TrainingRun) -> TrainingOutcome:
        """Wait until the trajectories in a folder are complete, then train the students one after the other.

        `run` gives the folder of checkpoints, the receivers of progress, and the time limit.
        """
        dataset = wait_for_trajectories(data_folder)
        origin = f"{data_folder.stem} {self.initial_checksum}"
        students = train_on_trajectories(self.teacher, self.initial, dataset, self.recipe, run, origin)
        latents = CachedLatents(dataset.latents[:, -1], dataset.caption_rows[:, None], dataset.text_inputs, {})
        return TrainingOutcome(students, latents, len(dataset))


def with_denoiser_on_gpu(pipeline: Pipeline) -> Pipeline:
    """Return a copy of a pipeline that runs its denoiser in torch on the GPU in float32.

    The denoiser's graph is the one that `stillhouse import` wrote, even where the pipeline was accelerated afterwards.
    """
    return _with_denoiser(pipeline, "torch", "f32", {"device": "cuda"})


def with_denoiser_in_bf16(pipeline: Pipeline) -> Pipeline:
    """Return a copy of a pipeline that runs its denoiser in OpenVINO in bf16, which takes half the time of float32.

    The denoiser's graph is the one that `stillhouse import` wrote, even where the pipeline was accelerated afterwards.
    The PSNR between trajectories in bf16 and in float32 is 66 dB for the model that ships with the package. The
    sampler's own error is larger (44 dB).
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
