"""The two ways to a student: a chain from guidance to fewer and fewer steps, or walks that the teacher made once."""

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
from stillhouse.distill.training.networks import Denoiser
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, plan_stages, train_chain
from stillhouse.distill.training.trajectory_chain import TRAJECTORY, plan_student_grids, train_on_trajectories
from stillhouse.fit.stage import Stage, UpdateLog
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.pipeline import Pipeline

_UNET_GRAPH = "unet/model.onnx"
"""As it was imported, with its network beside it."""
_GPU_BATCH = 256
"""Walks that are made at once on a GPU."""
_BF16_BACKEND = "openvino"
"""What computes in bf16 on a processor that has it."""
_BF16_BATCH = 64
"""Walks that are made at once there."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How a run learns, whatever it learns.

    Args:
        kept: folder of what is learnt from.
        work: of the checkpoints.
        report, watch: hear of every few updates, the second with what is learning.
        deadline: seconds of `time.monotonic` after which no update is begun.
    """

    data_folder: Path
    work_folder: Path
    report: Callable[[UpdateLog], None]
    observer: Callable[[Stage, UpdateLog], None]
    deadline: float | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingOutcome:
    """Those that have learnt, in turn; what they learnt from, as pictures, and how many there were."""

    students: Sequence[Student]
    latents: CachedLatents
    sample_count: int


class Strategy(Protocol):
    """From a teacher to students."""

    @property
    def data_kind(self) -> str:
        """Of what is learnt from."""

    @property
    def student_names(self) -> Sequence[str]:
        """Of the students to come, in turn."""

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """What is learnt from, from a number on, as it is made."""

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """A part of it, as it is kept."""

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Teach every student; fewer are there where time was up."""


@dataclass(frozen=True, slots=True)
class ProgressiveChain:
    """Each student is the next one's teacher, see `chain`.

    Args:
        teacher: the first one.
        recipe: how.
        begin: the only grid that the teacher walks, if it was distilled to one.
    """

    teacher: Denoiser
    recipe: ChainRecipe
    teacher_grid: TimestepGrid | None

    @property
    def data_kind(self) -> str:
        """See `Way`."""
        return "pairs"

    @property
    def student_names(self) -> Sequence[str]:
        """See `Way`."""
        return [planned.name for planned in plan_stages(self.teacher, self.recipe, self.teacher_grid)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Way`."""
        return open_samples(pipeline, settings, on_skipped)

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Way`."""
        return partial(encode_samples, pipeline)

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """See `Way`."""
        pairs = wait_for_latents(run.data_folder)
        students = train_chain(
            self.teacher,
            pairs,
            self.recipe,
            run.work_folder,
            run.report,
            run.deadline,
            run.observer,
            self.teacher_grid,
            run.data_folder.stem,
        )
        return TrainingOutcome(students, pairs, len(pairs.latents))


@dataclass(frozen=True, slots=True)
class TrajectoryRegression:
    """All students look at the teacher's own walks, see `walk_chain`.

    Args:
        teacher: who walks, as it is asked in torch.
        first: what the first of them begins as.
        recipe: how.
        begun: tells that beginning from all others.
    """

    teacher: Denoiser
    initial: Denoiser
    recipe: ChainRecipe
    initial_checksum: str

    @property
    def data_kind(self) -> str:
        """See `Way`."""
        return TRAJECTORY

    @property
    def student_names(self) -> Sequence[str]:
        """See `Way`."""
        return [f"{one.grid.steps}-steps" for one in plan_student_grids(self.initial, self.recipe)]

    def sample_source(
        self, pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Way`."""
        served = plan_student_grids(self.initial, self.recipe)[0]
        plan = TrajectoryPlan(
            student_grid=served.grid,
            teacher_steps=self.recipe.step_counts[0],
            count=settings.samples,
            guidance=self.recipe.guidance,
            seed=settings.seed,
            edit_grids=served.edit_grids,
        )
        if torch.cuda.is_available():
            pipeline, plan = with_unet_on_gpu(pipeline), replace(plan, batch_size=_GPU_BATCH)
        elif supports_openvino_bf16():
            pipeline, plan = with_unet_in_bf16(pipeline), replace(plan, batch_size=_BF16_BATCH)
        return lambda begin: generate_trajectories(pipeline, caption_sampler(settings, on_skipped), plan, begin)

    def shard_encoder(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Way`."""
        return partial(encode_trajectories, pipeline)

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """See `Way`."""
        walks = wait_for_trajectories(run.data_folder)
        students = train_on_trajectories(
            self.teacher,
            self.initial,
            walks,
            self.recipe,
            run.work_folder,
            run.report,
            run.deadline,
            run.observer,
            f"{run.data_folder.stem} {self.initial_checksum}",
        )
        endings = CachedLatents(walks.latents[:, -1], walks.caption_rows[:, None], walks.text_inputs, {})
        return TrainingOutcome(students, endings, len(walks))


def with_unet_on_gpu(pipeline: Pipeline) -> Pipeline:
    """The same, its U-Net run whole by torch on the GPU, in float32; however it was accelerated for the processor."""
    return _with_unet(pipeline, "torch", "f32", {"device": "cuda"})


def with_unet_in_bf16(pipeline: Pipeline) -> Pipeline:
    """The same, its U-Net run whole by OpenVINO in bf16, half the time of float32.

    Walks of the embedded teacher's come within 66 dB of those in float32, whose solver is 44 dB from an exact one.
    """
    return _with_unet(pipeline, _BF16_BACKEND, "bf16", {})


def supports_openvino_bf16() -> bool:
    """Whether OpenVINO is installed, and computes in bf16 on this processor."""
    return any(one.name == _BF16_BACKEND and "bf16" in one.precisions for one in backends())


def _with_unet(pipeline: Pipeline, backend: str, precision: str, settings: Mapping[str, str]) -> Pipeline:
    weights = pipeline.manifest.components["unet"].weights
    moved = Component(_UNET_GRAPH, weights, backend, precision, settings=settings)
    whole = replace(pipeline.manifest, step_cache=None)
    return Pipeline(pipeline.directory, manifest=whole, components={"unet": moved})
