"""The two ways to a student: a chain from guidance to fewer and fewer steps, or walks that the teacher made once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from stillhouse.backends import backends
from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.image_folder import Skipped
from stillhouse.distill.data.latent_dataset import KeptPairs, awaited, encoded_pairs
from stillhouse.distill.data.sources import captions_of, items_of
from stillhouse.distill.data.teacher_trajectories import Plan, awaited_walks, encoded_walks, walks_of
from stillhouse.distill.settings import Settings
from stillhouse.distill.training.networks import Denoiser
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, lessons, teach
from stillhouse.distill.training.trajectory_chain import WALKS, plan_walks, teach_walks
from stillhouse.fit.stage import Stage, Tick
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.pipeline import Pipeline

_GRAPH = "unet/model.onnx"
"""As it was imported, with its network beside it."""
_MANY = 256
"""Walks that are made at once on a GPU."""
_HALVES = "openvino"
"""What computes in bf16 on a processor that has it."""
_SOME = 64
"""Walks that are made at once there."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How a run learns, whatever it learns.

    Args:
        kept: folder of what is learnt from.
        work: of the checkpoints.
        report, watch: hear of every few updates, the second with what is learning.
        deadline: seconds of `time.monotonic` after which no update is begun.
    """

    kept: Path
    work: Path
    report: Callable[[Tick], None]
    watch: Callable[[Stage, Tick], None]
    deadline: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """Those that have learnt, in turn; what they learnt from, as pictures, and how many there were."""

    students: Sequence[Student]
    pictures: KeptPairs
    items: int


class Way(Protocol):
    """From a teacher to students."""

    @property
    def kind(self) -> str:
        """Of what is learnt from."""

    @property
    def names(self) -> Sequence[str]:
        """Of the students to come, in turn."""

    def items(
        self, pipeline: Pipeline, settings: Settings, skipped: Callable[[Skipped], None]
    ) -> Callable[[int], Iterable[Any]]:
        """What is learnt from, from a number on, as it is made."""

    def encoded(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """A part of it, as it is kept."""

    def learn(self, learning: Learning) -> Learnt:
        """Teach every student; fewer are there where time was up."""


@dataclass(frozen=True, slots=True)
class ByChain:
    """Each student is the next one's teacher, see `chain`.

    Args:
        teacher: the first one.
        recipe: how.
        begin: the only grid that the teacher walks, if it was distilled to one.
    """

    teacher: Denoiser
    recipe: ChainRecipe
    begin: TimestepGrid | None

    @property
    def kind(self) -> str:
        """See `Way`."""
        return "pairs"

    @property
    def names(self) -> Sequence[str]:
        """See `Way`."""
        return [planned.name for planned in lessons(self.teacher, self.recipe, self.begin)]

    def items(
        self, pipeline: Pipeline, settings: Settings, skipped: Callable[[Skipped], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Way`."""
        return items_of(pipeline, settings, skipped)

    def encoded(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Way`."""
        return partial(encoded_pairs, pipeline)

    def learn(self, learning: Learning) -> Learnt:
        """See `Way`."""
        pairs = awaited(learning.kept)
        students = teach(
            self.teacher,
            pairs,
            self.recipe,
            learning.work,
            learning.report,
            learning.deadline,
            learning.watch,
            self.begin,
            learning.kept.stem,
        )
        return Learnt(students, pairs, len(pairs.latents))


@dataclass(frozen=True, slots=True)
class ByWalks:
    """All students look at the teacher's own walks, see `walk_chain`.

    Args:
        teacher: who walks, as it is asked in torch.
        first: what the first of them begins as.
        recipe: how.
        begun: tells that beginning from all others.
    """

    teacher: Denoiser
    first: Denoiser
    recipe: ChainRecipe
    begun: str

    @property
    def kind(self) -> str:
        """See `Way`."""
        return WALKS

    @property
    def names(self) -> Sequence[str]:
        """See `Way`."""
        return [f"{one.grid.steps}-steps" for one in plan_walks(self.first, self.recipe)]

    def items(
        self, pipeline: Pipeline, settings: Settings, skipped: Callable[[Skipped], None]
    ) -> Callable[[int], Iterable[Any]]:
        """See `Way`."""
        served = plan_walks(self.first, self.recipe)[0]
        plan = Plan(
            served=served.grid,
            steps=self.recipe.counts[0],
            count=settings.items,
            guidance=self.recipe.guidance,
            seed=settings.seed,
            edits=served.edits,
        )
        if torch.cuda.is_available():
            pipeline, plan = on_gpu(pipeline), replace(plan, together=_MANY)
        elif is_quick_in_halves():
            pipeline, plan = in_halves(pipeline), replace(plan, together=_SOME)
        return lambda begin: walks_of(pipeline, captions_of(settings, skipped), plan, begin)

    def encoded(self, pipeline: Pipeline) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """See `Way`."""
        return partial(encoded_walks, pipeline)

    def learn(self, learning: Learning) -> Learnt:
        """See `Way`."""
        walks = awaited_walks(learning.kept)
        students = teach_walks(
            self.teacher,
            self.first,
            walks,
            self.recipe,
            learning.work,
            learning.report,
            learning.deadline,
            learning.watch,
            f"{learning.kept.stem} {self.begun}",
        )
        endings = KeptPairs(walks.latents[:, -1], walks.captions[:, None], walks.texts, {})
        return Learnt(students, endings, len(walks))


def on_gpu(pipeline: Pipeline) -> Pipeline:
    """The same, its U-Net run whole by torch on the GPU, in float32; however it was accelerated for the processor."""
    return _walking(pipeline, "torch", "f32", {"device": "cuda"})


def in_halves(pipeline: Pipeline) -> Pipeline:
    """The same, its U-Net run whole by OpenVINO in bf16, half the time of float32.

    Walks of the embedded teacher's come within 66 dB of those in float32, whose solver is 44 dB from an exact one.
    """
    return _walking(pipeline, _HALVES, "bf16", {})


def is_quick_in_halves() -> bool:
    """Whether OpenVINO is installed, and computes in bf16 on this processor."""
    return any(one.name == _HALVES and "bf16" in one.precisions for one in backends())


def _walking(pipeline: Pipeline, backend: str, precision: str, settings: Mapping[str, str]) -> Pipeline:
    weights = pipeline.manifest.components["unet"].weights
    moved = Component(_GRAPH, weights, backend, precision, settings=settings)
    whole = replace(pipeline.manifest, step_cache=None)
    return Pipeline(pipeline.directory, manifest=whole, components={"unet": moved})
