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
from stillhouse.diffusion import Grid, Schedule, grid_at, noise_levels, noised
from stillhouse.distill.networks import Inputs
from stillhouse.distill.pairs import halves
from stillhouse.distill.parts import awaited as awaited_parts
from stillhouse.distill.rounds import refined
from stillhouse.models.pipeline import Draft, Pipeline

SOLVER = "dpmpp_2m"
"""By which the teacher walks: second order for the price of one evaluation a step."""
_SAME = 0.5
"""Of the edits, those that keep the caption of their picture."""


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
        kinds: int64 [walks]: of their grids, see `Plan`; on the processor.
    """

    latents: Tensor
    captions: Tensor
    guidance: Tensor
    texts: Inputs
    kinds: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.latents)

    def on(self, device: torch.device) -> "KeptWalks":
        """The same in a GPU's memory, where it takes half of what is free there at most; else as they are."""
        if device.type != "cuda":
            return self
        held = sum(tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.texts.values()))
        if 2 * held > torch.cuda.mem_get_info(device)[0]:
            return self
        texts = {name: kept.to(device) for name, kept in self.texts.items()}
        return KeptWalks(self.latents.to(device), self.captions.to(device), self.guidance.to(device), texts, self.kinds)

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
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Walks that a teacher is to make.

    Args:
        served: the student's grid from pure noise, of its own schedule: the first kind of walks.
        edits: the same for pictures that begin from another one, by strength: the other kinds, in this order.
        steps: of the teacher's walk from pure noise; edits take as long ones.
        count: of the walks.
        guidance: scales, the least and the most, drawn evenly.
        seed: of everything that is drawn.
        together: walks that are made at once.
    """

    served: Grid
    steps: int
    count: int
    guidance: tuple[float, float]
    seed: int
    edits: Mapping[float, Grid] = field(default_factory=dict)
    together: int = 8

    def of(self, schedule: Schedule) -> tuple["_Kind", ...]:
        """Each kind of walks, as a teacher of this schedule walks it."""
        kinds = []
        for strength, one in {1.0: self.served, **self.edits}.items():
            own = asked_at(schedule, one)
            fine = refined(schedule, own, max(own.steps, round(self.steps * strength)))
            kinds.append(_Kind(fine, tuple(fine.points.index(point) for point in own.points)))
        return tuple(kinds)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a teacher walks, and where it is kept."""

    fine: Grid
    places: tuple[int, ...]


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
    kinds = plan.of(pipeline.manifest.schedule)
    each = 2 if plan.edits else 1
    number, last = begin // each, -(-plan.count // each)
    left_out = begin % each
    while number < last:
        numbers = range(number, min(number + plan.together, last))
        rngs = [np.random.default_rng((plan.seed, 6, one)) for one in numbers]
        drafts = [_begun(pipeline, captions, kinds[0], plan.guidance, rng) for rng in rngs]
        made = [_walked(pipeline, drafts, [kinds[0]] * len(drafts), [0] * len(drafts))]
        if plan.edits:
            chosen = [1 + int(rng.integers(len(plan.edits))) for rng in rngs]
            taken = [kinds[kind] for kind in chosen]
            edited = [
                _edited(pipeline, captions, kind, plan.guidance, rng, draft)
                for kind, rng, draft in zip(taken, rngs, drafts, strict=True)
            ]
            made.append(_walked(pipeline, edited, taken, chosen))
        every = [walk for one in zip(*made, strict=True) for walk in one]
        yield from every[left_out : plan.count - number * each]
        number, left_out = numbers.stop, 0


def _walked(
    pipeline: Pipeline, drafts: Sequence[Draft], kinds: Sequence[_Kind], numbers: Sequence[int]
) -> Sequence[Walked]:
    """Each draft from its beginning to its picture."""
    passed: list[list[Array]] = [[draft.latents] for draft in drafts]
    while any(not draft.is_done for draft in drafts):
        pipeline.advance([draft for draft in drafts if not draft.is_done])
        for draft, kind, latents in zip(drafts, kinds, passed, strict=True):
            if len(latents) < len(kind.places) and draft.index == kind.places[len(latents)]:
                latents.append(draft.latents)
    made = []
    for draft, latents, number in zip(drafts, passed, numbers, strict=True):
        scale = draft.request.guidance
        assert scale is not None
        made.append(Walked(np.stack(latents), draft.request.prompt, scale, number, draft.conditioning))
    return made


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
    kind: _Kind,
    guidance: tuple[float, float],
    rng: np.random.Generator,
) -> Draft:
    """A walk from pure noise."""
    caption, scale = captions(rng), float(rng.uniform(*guidance))
    return _laid_out(pipeline, kind, caption, scale, int(rng.integers(2**62)))


def _edited(
    pipeline: Pipeline,
    captions: Callable[[np.random.Generator], str],
    kind: _Kind,
    guidance: tuple[float, float],
    rng: np.random.Generator,
    before: Draft,
) -> Draft:
    """A walk from a picture with noise over it."""
    caption = before.request.prompt if rng.random() < _SAME else captions(rng)
    draft = _laid_out(pipeline, kind, caption, float(rng.uniform(*guidance)), int(rng.integers(2**62)))
    first = kind.fine.points[0]
    draft.latents = noised(before.latents, draft.latents, first.alpha, first.sigma)
    return draft


def _laid_out(pipeline: Pipeline, kind: _Kind, caption: str, guidance: float, seed: int) -> Draft:
    draft = pipeline.start(ImageRequest(caption, guidance=guidance, seed=seed, sampler=SOLVER))
    return Draft(
        replace(draft.course, grid=kind.fine, guidance_interval=(0.0, 1.0), refresh=1),
        draft.latents,
        draft.conditioning,
        draft.unconditional,
        request=draft.request,
        started=draft.started,
    )


def encoded_walks(walks: Sequence[Walked]) -> dict[str, Any]:
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
    }
