"""Walks: what the teacher itself passes through on its way to a picture, kept at the levels of a student's grid.

The teacher walks each of them once, by the engine that serves it or by torch on a GPU, and by a solver of second order,
and its student looks at them as often as it likes: beside asking a guided teacher for every target, that costs a fifth.
It is knowledge distillation as Luhman and Luhman began it (arXiv 2101.02388), with the levels between, and of data it
needs none.

Edits are walks, too: they begin at a picture with noise over it, whose picture is where the walk before has come, under
the same caption or a new one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core import Array, ImageRequest
from stillhouse.diffusion import (
    NoiseLevel,
    Schedule,
    TimestepGrid,
    add_noise,
    ddim_coefficients,
    grid_from_timesteps,
    noise_levels,
)
from stillhouse.distill.data.latent_dataset import halves, read_inputs, unsaid
from stillhouse.distill.data.shards import awaited as awaited_parts
from stillhouse.distill.training.networks import Inputs
from stillhouse.distill.training.step_grids import refined
from stillhouse.errors import BackendFailed
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline

SOLVER = "dpmpp_2m"
"""By which the teacher walks: second order for the price of one evaluation a step."""
_SAME = 0.5
"""Of the edits, those that keep the caption of their picture."""
_FULL = "out of memory"
_FEWEST = 4
"""Steps of the teacher's, however short its walk is."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """One walk.

    Args:
        latents: float32 [levels, C, h, w]: where it was at each level of its grid, the noisiest first, and the clean
            picture last.
        caption: that it followed.
        guidance: by this scale.
        kind: of its grid, see `Plan`.
        said: what the network is told by the caption, float32 by input.
    """

    latents: Array
    caption: str
    guidance: float
    kind: int = 0
    said: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A batch of places on walks.

    Args:
        begun: where each walk begins, float32 [B, C, h, w].
        here: where it is at its place.
        reached: where it is at the next level.
        said: prompts, by input.
        guidance: scales, float32 [B].
    """

    begun: Tensor
    here: Tensor
    reached: Tensor
    said: Inputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KeptWalks:
    """Walks that were made before.

    Args:
        latents: float16 [walks, levels, C, h, w].
        captions: int64 [walks]: rows of `texts`.
        guidance: float32 [walks].
        texts: by input, float16 [captions, ...].
        kinds: int64 [walks]: of their grids, see `Plan`; on the processor. Edits are shorter than walks from noise can
            be; behind their clean picture it is repeated.
        unsaid: the negative prompt, by input, float16, one row; on the processor.
    """

    latents: Tensor
    captions: Tensor
    guidance: Tensor
    texts: Inputs
    kinds: Tensor
    unsaid: Inputs

    def __len__(self) -> int:
        """How many."""
        return len(self.latents)

    def on(self, device: torch.device) -> "KeptWalks":
        """The same in a GPU's memory, where it takes half of what is free there at most; else as they are."""
        if device.type != "cuda":
            return self
        torch.cuda.empty_cache()  # what making them took is free again
        held = sum(tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.texts.values()))
        if 2 * held > torch.cuda.mem_get_info(device)[0]:
            return self
        texts = {name: kept.to(device) for name, kept in self.texts.items()}
        moved = {name: getattr(self, name).to(device) for name in ("latents", "captions", "guidance")}
        return replace(self, **moved, texts=texts)

    def shown(self, walks: Tensor, places: Tensor, reached: Tensor) -> Shown:
        """Of these walks, int64 [B], what is at these levels and at those that are reached next, int64 [B] both."""
        walks, places, reached = (index.to(self.latents.device) for index in (walks, places, reached))
        rows = self.captions[walks]
        return Shown(
            self.latents[walks, 0].float(),
            self.latents[walks, places].float(),
            self.latents[walks, reached].float(),
            {name: kept[rows].float() for name, kept in self.texts.items()},
            self.guidance[walks],
        )


def awaited_walks(folder: Path) -> KeptWalks:
    """Those of a folder, as soon as the process that makes them is done."""
    parts = awaited_parts(folder)
    begins = np.cumsum([0, *(len(next(iter(part["texts"].values()))) for part in parts)])
    return KeptWalks(
        latents=torch.cat([part["latents"] for part in parts]),
        captions=torch.cat([part["captions"] + int(begin) for part, begin in zip(parts, begins, strict=False)]),
        guidance=torch.cat([part["guidance"] for part in parts]),
        texts={name: torch.cat([part["texts"][name] for part in parts]) for name in parts[0]["texts"]},
        kinds=torch.cat([part["kinds"] for part in parts]),
        unsaid=parts[0]["unsaid"],
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Walks that a teacher is to make.

    Args:
        served: the student's grid from pure noise, of its own schedule: the first kind of walks.
        steps: of the teacher's walk from pure noise. In an edit its steps are as long, and it takes twice as many as
            the student at least.
        count: of the walks.
        guidance: scales, the least and the most, drawn evenly.
        seed: of everything that is drawn.
        edits: grids for pictures that begin from another one, by strength, of no more steps than `served`: the other
            kinds, in this order.
        together: walks that are made at once; fewer where a GPU's memory is too small.
    """

    served: TimestepGrid
    steps: int
    count: int
    guidance: tuple[float, float]
    seed: int
    edits: Mapping[float, TimestepGrid] = field(default_factory=dict)
    together: int = 8

    def of(self, schedule: Schedule) -> tuple["Route", ...]:
        """Each kind of walks, as a teacher of this schedule walks it."""
        edits = (
            route_of(schedule, edit, max(_FEWEST, 2 * edit.steps, round(self.steps * strength)))
            for strength, edit in self.edits.items()
        )
        return (route_of(schedule, self.served, self.steps), *edits)


@dataclass(frozen=True, slots=True)
class Route:
    """What a teacher walks, and where it is kept.

    Args:
        first: the student's first level, where walks are laid out. A teacher that was not taught it is shown it all the
            same, at its own first one.
        above: the student's levels after that which are as noisy as the teacher's first one, or noisier.
        fine: the teacher's grid.
        places: of the student's other levels in it, CLEAN included.
    """

    first: NoiseLevel
    above: tuple[NoiseLevel, ...]
    fine: TimestepGrid
    places: tuple[int, ...]


def route_of(schedule: Schedule, served: TimestepGrid, steps: int) -> Route:
    """How a teacher of this schedule walks a student's grid: its levels are the nearest, by the angle atan2(sigma,
    alpha), and as many others as make so many steps.

    >>> from stillhouse.diffusion import grid
    >>> route = route_of(Schedule(), grid(Schedule(zero_terminal_snr=True), 9), 12)
    >>> [point.timestep for point in route.above], route.fine.timesteps.tolist()[:3]
    ([888.0], [999.0, 924.0, 848.0])
    """
    first, *others = served.levels
    if schedule.is_flow:
        fine = refined(schedule, served, max(steps, served.steps))
        return Route(first, (), fine, tuple(fine.levels.index(point) for point in others))
    alphas, sigmas = noise_levels(schedule)
    angles = np.arctan2(sigmas, alphas)

    def nearest(point: NoiseLevel) -> int:
        return int(np.abs(angles - np.arctan2(point.sigma, point.alpha)).argmin())

    levels, above = [nearest(first)], []
    for point in others[:-1]:
        if nearest(point) >= levels[0]:
            above.append(point)
        else:
            levels.append(min(nearest(point), levels[-1] - 1))
    own = grid_from_timesteps(schedule, [float(level) for level in levels])
    fine = refined(schedule, own, max(steps, own.steps))
    return Route(first, tuple(above), fine, tuple(fine.levels.index(point) for point in own.levels[1:]))


def walks_of(
    pipeline: Pipeline, captions: Callable[[np.random.Generator], str], plan: Plan, begin: int = 0
) -> Iterator[Walked]:
    """The teacher's walks, each decided by the seed and its number alone.

    Where there are edits, every second walk is one, of the picture before it.

    Args:
        pipeline: the teacher.
        captions: draws one.
        plan: which walks.
        begin: so many are left out, as if they had been made before.
    """
    routes = plan.of(pipeline.manifest.schedule)
    each = 2 if plan.edits else 1
    last = -(-plan.count // each)
    engine = _Engine(pipeline, plan.together)
    # Cut as they would be from the first one on: engines round differently where rows lie differently.
    for number in range(begin // each // plan.together * plan.together, last, plan.together):
        rngs = [np.random.default_rng((plan.seed, 6, one)) for one in range(number, min(number + plan.together, last))]
        drafts = [_laid_out(pipeline, routes[0], captions(rng), plan.guidance, rng) for rng in rngs]
        made = [_walked(engine, drafts, [routes[0]] * len(drafts), [0] * len(drafts))]
        if plan.edits:
            kinds = [1 + int(rng.integers(len(plan.edits))) for rng in rngs]
            taken = [routes[kind] for kind in kinds]
            edited = [
                _edited(pipeline, captions, route, plan.guidance, rng, draft)
                for route, rng, draft in zip(taken, rngs, drafts, strict=True)
            ]
            made.append([_padded(walk, plan.served.steps) for walk in _walked(engine, edited, taken, kinds)])
        every = [walk for one in zip(*made, strict=True) for walk in one]
        yield from every[max(0, begin - number * each) : plan.count - number * each]


@dataclass(slots=True)
class _Engine:
    """A pipeline, and how many pictures it takes at once: half as many from the moment on when memory is too small."""

    pipeline: Pipeline
    most: int

    def advance(self, drafts: Sequence[ImageTrajectory]) -> None:
        """Move each by one evaluation."""
        done = 0
        while done < len(drafts):
            some = drafts[done : done + self.most]
            try:
                self.pipeline.advance(some)
            except BackendFailed as error:
                if _FULL not in str(error) or self.most == 1:
                    raise
                self.most = -(-len(some) // 2)
                torch.cuda.empty_cache()
            else:
                done += len(some)


def _walked(
    engine: _Engine, drafts: Sequence[ImageTrajectory], routes: Sequence[Route], kinds: Sequence[int]
) -> list[Walked]:
    """Each draft from its beginning to its picture."""
    read = engine.pipeline.arrays.read
    passed = [[read(draft.latents)] for draft in drafts]
    while moving := [number for number, draft in enumerate(drafts) if not draft.is_done]:
        engine.advance([drafts[number] for number in moving])
        for number in moving:
            draft, route, latents = drafts[number], routes[number], passed[number]
            if draft.index == 1:
                assert draft.denoised is not None
                moves = [ddim_coefficients(route.first, point) for point in route.above]
                latents += [move.z * latents[0] + move.x0 * read(draft.denoised) for move in moves]
            if draft.index in route.places:
                latents.append(read(draft.latents))
    made = []
    for draft, latents, kind in zip(drafts, passed, kinds, strict=True):
        scale = draft.request.guidance
        assert scale is not None
        said = read_inputs(engine.pipeline, draft.conditioning)
        made.append(Walked(np.stack(latents), draft.request.prompt, scale, kind, said))
    return made


def _padded(walk: Walked, steps: int) -> Walked:
    """As long as one of so many steps."""
    missing = steps + 1 - len(walk.latents)
    return replace(walk, latents=np.concatenate([walk.latents, *[walk.latents[-1:]] * missing]))


def _edited(
    pipeline: Pipeline,
    captions: Callable[[np.random.Generator], str],
    route: Route,
    guidance: tuple[float, float],
    rng: np.random.Generator,
    before: ImageTrajectory,
) -> ImageTrajectory:
    """A walk from a picture with noise over it."""
    caption = before.request.prompt if rng.random() < _SAME else captions(rng)
    draft = _laid_out(pipeline, route, caption, guidance, rng)
    draft.latents = add_noise(before.latents, draft.latents, route.first.alpha, route.first.sigma)
    return draft


def _laid_out(
    pipeline: Pipeline, route: Route, caption: str, guidance: tuple[float, float], rng: np.random.Generator
) -> ImageTrajectory:
    """A walk from pure noise."""
    scale, seed = float(rng.uniform(*guidance)), int(rng.integers(2**62))
    draft = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    return ImageTrajectory(
        replace(draft.plan, grid=route.fine, guidance_interval=(0.0, 1.0), cache_interval=1),
        draft.latents,
        draft.conditioning,
        draft.unconditional,
        request=draft.request,
        started=draft.started,
    )


def encoded_walks(pipeline: Pipeline, walks: Sequence[Walked]) -> dict[str, Any]:
    """A part of them, as `parts.keep` writes it."""
    rows: dict[str, int] = {}
    texts: list[Inputs] = []
    for walk in walks:
        if walk.caption not in rows:
            rows[walk.caption] = len(rows)
            texts.append(halves(walk.said))
    return {
        "latents": torch.from_numpy(np.stack([walk.latents for walk in walks])).half(),
        "captions": torch.tensor([rows[walk.caption] for walk in walks]),
        "guidance": torch.tensor([walk.guidance for walk in walks], dtype=torch.float32),
        "texts": {name: torch.stack([text[name] for text in texts]) for name in texts[0]},
        "kinds": torch.tensor([walk.kind for walk in walks]),
        "unsaid": unsaid(pipeline),
    }
