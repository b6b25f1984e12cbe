"""The judge: several ways to draw the same captions from the same seeds, compared with the teacher's.

Nothing here knows what a student is: a way is a pipeline and what is asked of it, so that a student of 3 steps stands
beside its teacher at 3 steps with other samplers, and what distillation gained can be read off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import ImageRequest, Picture
from stillhouse.distill.evaluation.metric_encoders import Brought
from stillhouse.measure.clock import Timing, alternate, summarise
from stillhouse.measure.image_metrics import psnr, ssim
from stillhouse.measure.set_metrics import Features, frechet, overlap, spread
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import Description
from stillhouse.shapes.oracle import Score, score
from stillhouse.shapes.scene import Scene, draw
from stillhouse.shapes.score import SCORES, Share, draw_together, held_out, shares

PROMPTS, SEEDS = 32, 16
"""Of the pictures by which diversity is judged: so many captions, each drawn from so many seeds."""
GAPS = ("all_correct", "strict", "clean")
HURRIED = ("ddim", "dpmpp_2m")
"""Samplers by which a teacher is hurried."""
SHOWN = 8
"""Pictures of each way that are kept to be looked at."""
_TOGETHER, _RESAMPLES, _ROUNDS = 8, 2000, 7

NOTHING = Brought()
Encoder = Callable[[Sequence[Picture]], Features]
"""Features of pictures."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A pipeline, and what is asked of it: steps, sampler and guidance; prompt and seed are replaced."""

    name: str
    pipeline: Pipeline
    asked: ImageRequest


@dataclass(frozen=True, slots=True)
class Gap:
    """By how much a mean over captions lies above the teacher's, with its 95 % interval (paired bootstrap)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What was measured of one way.

    Args:
        name: of the way.
        steps, sampler, guidance: as asked for.
        rows: that the network saw for each picture; guidance counts twice.
        alone: seconds of one picture at a time.
        scores: of the oracle; none where it cannot read the pictures.
        gaps: of some of them, against the first way's.
        rerender: dB between a picture and the clean drawing of what was read in it, in the mean.
        psnr, ssim: against the first way's picture of the same caption and seed, in the mean.
        frechet: distance to true pictures, in features; where there are none, to the first way's.
        precision, recall: among the same.
        diversity: spread of pictures of one caption, as a share of the first way's.
        clip, fid: mean CLIP score, and the Frechet distance of Inception's features; None where nobody brought these.
    """

    name: str
    steps: int
    sampler: str
    guidance: float
    rows: int
    alone: Timing
    scores: Mapping[str, Share]
    gaps: Mapping[str, Gap]
    rerender: float | None
    psnr: float
    ssim: float
    frechet: float
    precision: float
    recall: float
    diversity: float
    clip: float | None = None
    fid: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is drawn.

    Args:
        prompts: one for each picture.
        scenes: what is true of each prompt, and its description, where an oracle can read that in a picture.
    """

    prompts: tuple[str, ...]
    scenes: tuple[tuple[Scene, Description], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What was found.

    Args:
        standings: of every way, the first one's first.
        prompts: those of the pictures below.
        pictures: by way, of the first prompts.
    """

    standings: tuple[Standing, ...]
    prompts: tuple[str, ...]
    pictures: Mapping[str, tuple[Picture, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    way: Way
    pictures: Sequence[Picture]
    scores: Sequence[Score]
    features: Features
    spread: float
    clip: float | None
    inception: Features | None


def captions_of_shapes(count: int) -> Subject:
    """The first captions that no training has seen."""
    scenes = tuple(held_out(count))
    return Subject(tuple(str(caption) for _, caption in scenes), scenes)


def compare(
    ways: Sequence[Way],
    subject: Subject,
    encoder: Encoder,
    progress: Progress = lambda name, done, total: None,
    brought: Brought = NOTHING,
) -> Compared:
    """Draw everything in every way, and compare all with the first.

    Args:
        ways: the first is what the others are compared with.
        subject: what is drawn, each prompt from a seed of its own.
        encoder: features of pictures.
        progress: called with a way's name, the pictures that are done, and of how many.
        brought: encoders of the user's own.

    Raises:
        InvalidRequest: a pipeline that cannot do what is asked of it.
    """
    texts = subject.prompts
    scenes = [draw(scene) for scene, _ in subject.scenes]
    true = encoder(scenes) if scenes else None
    timings = _alone(ways, texts[0])
    drawn: list[_Drawn] = []
    for way in ways:
        requests = [replace(way.asked, prompt=text, seed=number) for number, text in enumerate(texts)]
        several = [replace(way.asked, prompt=text, seed=seed) for text in texts[:PROMPTS] for seed in range(SEEDS)]
        pictures = _pictures(way, [*requests, *several], progress)
        own, others = pictures[: len(texts)], encoder(pictures[len(texts) :])
        groups = others.reshape(-1, SEEDS, others.shape[1])
        scores = [score(picture, caption) for picture, (_, caption) in zip(own, subject.scenes, strict=False)]
        clip = float(brought.clip(own, texts).mean()) if brought.clip else None
        inception = brought.inception(own) if brought.inception else None
        drawn.append(_Drawn(way, own, scores, encoder(own), spread(groups), clip, inception))
    reference = drawn[0].features if true is None else true
    seen = brought.inception(scenes) if brought.inception and scenes else drawn[0].inception
    standings = tuple(_standing(one, drawn[0], reference, seen, summarise(timings[one.way.name])) for one in drawn)
    return Compared(standings, texts[:SHOWN], {one.way.name: tuple(one.pictures[:SHOWN]) for one in drawn})


def gap(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Gap:
    """The mean of paired differences, with its percentile bootstrap interval over pairs (Efron 1979), seeded.

    >>> gap(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    Gap(value=1.0, low=1.0, high=1.0)
    """
    differences = ours - theirs
    drawn = np.random.default_rng(0).choice(differences, size=(_RESAMPLES, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    return Gap(float(differences.mean()), float(low), float(high))


def _standing(one: _Drawn, first: _Drawn, true: Features, seen: Features | None, alone: Timing) -> Standing:
    way = one.way
    draft = way.pipeline.start(way.pipeline.resolve(way.asked))
    request = draft.request
    assert request.steps and request.sampler and request.guidance is not None
    rows = sum(1 + draft.plan.is_guided(evaluation) for evaluation in draft.evaluations)
    pairs = list(zip(first.pictures, one.pictures, strict=True))
    lying = overlap(true, one.features)
    return Standing(
        name=way.name,
        steps=request.steps,
        sampler=request.sampler,
        guidance=request.guidance,
        rows=rows,
        alone=alone,
        scores=shares(one.scores) if one.scores else {},
        gaps={name: gap(_values(one.scores, name), _values(first.scores, name)) for name in GAPS if one.scores},
        rerender=float(np.mean([each.rerender for each in one.scores])) if one.scores else None,
        psnr=float(np.mean([psnr(*pair) for pair in pairs])),
        ssim=float(np.mean([ssim(*pair) for pair in pairs])),
        frechet=frechet(true, one.features),
        precision=lying.precision,
        recall=lying.recall,
        diversity=one.spread / first.spread,
        clip=one.clip,
        fid=None if seen is None or one.inception is None else frechet(seen, one.inception),
    )


def _values(scores: Sequence[Score], name: str) -> NDArray[np.float64]:
    assert name in SCORES
    return np.array([float(getattr(one, name)) for one in scores])


def _pictures(way: Way, requests: Sequence[ImageRequest], progress: Progress) -> list[Picture]:
    pictures: list[Picture] = []
    for begin in range(0, len(requests), _TOGETHER):
        pictures += draw_together(way.pipeline, requests[begin : begin + _TOGETHER])
        progress(way.name, len(pictures), len(requests))
    return pictures


def _alone(ways: Sequence[Way], text: str) -> dict[str, list[float]]:
    """Seconds of one picture at a time, every way once a round."""

    def timed(way: Way) -> float:
        began = perf_counter()
        draw_together(way.pipeline, [replace(way.asked, prompt=text)])
        return perf_counter() - began

    for way in ways:
        timed(way)
    return alternate({way.name: lambda way=way: timed(way) for way in ways}, _ROUNDS)  # type: ignore[misc]


def student_of(pipeline: Pipeline, guidance: float) -> Way:
    """A student as it draws by default, by this guidance; its name says how many steps it takes."""
    asked = ImageRequest("", guidance=guidance)
    steps = pipeline.resolve(asked).steps
    return Way(f"{pipeline.manifest.name}, {steps} step{'s' if steps != 1 else ''}", pipeline, asked)


def ways_of(teacher: Way, students: Sequence[Way]) -> list[Way]:
    """The teacher, its students, and the teacher hurried: as few evaluations as each student, by other samplers.

    Guidance counts twice. So for a student of three steps the teacher is asked for two guided ones, for three without
    guidance, and for three guided ones, which see twice as much as the student does.

    Args:
        teacher: as it draws by default.
        students: their names say how many steps they take.
    """
    names = [student.name for student in students]
    numbered = [
        replace(student, name=f"{student.name} ({place})") if names.count(student.name) > 1 else student
        for place, student in enumerate(students, 1)
    ]
    ways = [teacher, *numbered]
    for steps in dict.fromkeys(_steps(student) for student in students):
        for sampler in HURRIED:
            for count, guidance, told in (
                (max(1, -(-steps // 2)), None, "guided"),
                (steps, 1.0, "unguided"),
                (steps, None, "guided"),
            ):
                name = f"{sampler} {count} {told}"
                asked = replace(teacher.asked, steps=count, guidance=guidance, sampler=sampler)
                if name not in {way.name for way in ways}:
                    ways.append(Way(name, teacher.pipeline, asked))
    return ways


def _steps(way: Way) -> int:
    steps = way.pipeline.resolve(way.asked).steps
    assert steps is not None
    return steps
