"""Walks: what the teacher itself passes through from pure noise to the picture, kept at the levels of a student's grid.

The teacher walks each of them once, by the engine that serves it and by a solver of second order, and its student looks
at them as often as it likes: beside asking a guided teacher for every target, that costs a fifth. It is knowledge
distillation as Luhman and Luhman began it (arXiv 2101.02388), with the levels between, and of data it needs none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core import Array, ImageRequest
from stillhouse.diffusion import Grid, Schedule, grid_at, noise_levels
from stillhouse.distill.networks import Inputs
from stillhouse.distill.pairs import told
from stillhouse.distill.parts import awaited as awaited_parts
from stillhouse.distill.rounds import refined
from stillhouse.models.pipeline import Draft, Pipeline

SOLVER = "dpmpp_2m"
"""By which the teacher walks: second order for the price of one evaluation a step."""
_TOGETHER = 8


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """One walk.

    Args:
        latents: float32 [levels, C, h, w]: where it was at each level of the student's grid, pure noise first, and the
            clean picture last.
        caption: that it followed.
        guidance: by this scale.
    """

    latents: Array
    caption: str
    guidance: float


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A batch of places on walks.

    Args:
        begun: the pure noise of each walk, float32 [B, C, h, w].
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
    """

    latents: Tensor
    captions: Tensor
    guidance: Tensor
    texts: Inputs

    def __len__(self) -> int:
        """How many."""
        return len(self.latents)

    def shown(self, walks: Tensor, places: Tensor, reached: Tensor) -> Shown:
        """Of these walks, int64 [B], what is at these levels and at those that are reached next, int64 [B] both."""
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
    )


def walks_of(
    pipeline: Pipeline,
    captions: Callable[[np.random.Generator], str],
    served: Grid,
    steps: int,
    count: int,
    guidance: tuple[float, float],
    seed: int,
    begin: int = 0,
) -> Iterator[Walked]:
    """The teacher's walks, each decided by the seed and its number alone.

    Args:
        pipeline: the teacher.
        captions: draws one.
        served: the student's grid, of its own schedule.
        steps: of the teacher's walk.
        count: of the walks.
        guidance: scales, the least and the most, drawn evenly.
        seed: of everything that is drawn.
        begin: so many are left out, as if they had been made before.
    """
    own = asked_at(pipeline.manifest.schedule, served)
    fine = refined(pipeline.manifest.schedule, own, steps)
    places = [fine.points.index(point) for point in own.points]
    for first in range(begin, count, _TOGETHER):
        numbers = range(first, min(first + _TOGETHER, count))
        drafts = [_begun(pipeline, captions, fine, guidance, np.random.default_rng((seed, 6, n))) for n in numbers]
        passed: list[list[Array]] = [[draft.latents] for draft in drafts]
        for place in range(1, fine.steps + 1):
            pipeline.advance(drafts)
            if place in places:
                for draft, latents in zip(drafts, passed, strict=True):
                    latents.append(draft.latents)
        for draft, latents in zip(drafts, passed, strict=True):
            scale = draft.request.guidance
            assert scale is not None
            yield Walked(np.stack(latents), draft.request.prompt, scale)


def asked_at(schedule: Schedule, served: Grid) -> Grid:
    """A grid's levels as a network of this schedule knows them: of each the nearest, by the angle atan2(sigma, alpha).

    A teacher that was not taught pure noise is shown it all the same, at its first level.

    >>> from stillhouse.diffusion import grid
    >>> asked_at(Schedule(), grid(Schedule(zero_terminal_snr=True), 3)).timesteps.tolist()[0]
    999.0
    """
    if schedule.is_flow:
        return served
    alphas, sigmas = noise_levels(schedule)
    angles = np.arctan2(sigmas, alphas)
    wanted = np.arctan2(served.sigmas[:-1], served.alphas[:-1])
    return grid_at(schedule, [float(np.abs(angles - angle).argmin()) for angle in wanted])


def _begun(
    pipeline: Pipeline,
    captions: Callable[[np.random.Generator], str],
    fine: Grid,
    guidance: tuple[float, float],
    rng: np.random.Generator,
) -> Draft:
    request = ImageRequest(
        captions(rng), guidance=float(rng.uniform(*guidance)), seed=int(rng.integers(2**62)), sampler=SOLVER
    )
    draft = pipeline.start(request)
    return Draft(
        replace(draft.course, grid=fine, guidance_interval=(0.0, 1.0), refresh=1),
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
            texts.append(told(pipeline, walk.caption))
    return {
        "latents": torch.from_numpy(np.stack([walk.latents for walk in walks])).half(),
        "captions": torch.tensor([rows[walk.caption] for walk in walks]),
        "guidance": torch.tensor([walk.guidance for walk in walks], dtype=torch.float32),
        "texts": {name: torch.stack([text[name] for text in texts]) for name in texts[0]},
    }
