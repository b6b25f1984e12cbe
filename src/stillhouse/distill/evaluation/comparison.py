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
from stillhouse.distill.evaluation.metric_encoders import MetricEncoders
from stillhouse.measure.clock import Timing, run_interleaved, summarise
from stillhouse.measure.image_metrics import psnr, ssim
from stillhouse.measure.set_metrics import Features, frechet_distance, precision_recall, prompt_diversity
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import Description
from stillhouse.shapes.oracle import CaptionScore, score_picture
from stillhouse.shapes.scene import Scene, render_scene
from stillhouse.shapes.score import SCORES, Share, generate_batch, held_out_captions, score_shares

DIVERSITY_PROMPTS, DIVERSITY_SEEDS = 32, 16
"""Of the pictures by which diversity is judged: so many captions, each drawn from so many seeds."""
DELTA_SCORES = ("all_correct", "strict", "clean")
FEW_STEP_BASELINES = ("ddim", "dpmpp_2m")
"""Samplers by which a teacher is hurried."""
SHOWN_PICTURES = 8
"""Pictures of each way that are kept to be looked at."""
_BATCH, _RESAMPLES, _ROUNDS = 8, 2000, 7

NO_ENCODERS = MetricEncoders()
FeatureFn = Callable[[Sequence[Picture]], Features]
"""Features of pictures."""
ProgressFn = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationSetup:
    """A pipeline, and what is asked of it: steps, sampler and guidance; prompt and seed are replaced."""

    name: str
    pipeline: Pipeline
    request: ImageRequest


@dataclass(frozen=True, slots=True)
class ScoreDelta:
    """By how much a mean over captions lies above the teacher's, with its 95 % interval (paired bootstrap)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EvaluationResult:
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
    gaps: Mapping[str, ScoreDelta]
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
class CaptionSet:
    """What is drawn.

    Args:
        prompts: one for each picture.
        scenes: what is true of each prompt, and its description, where an oracle can read that in a picture.
    """

    prompts: tuple[str, ...]
    scenes: tuple[tuple[Scene, Description], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What was found.

    Args:
        standings: of every way, the first one's first.
        prompts: those of the pictures below.
        pictures: by way, of the first prompts.
    """

    results: tuple[EvaluationResult, ...]
    prompts: tuple[str, ...]
    pictures: Mapping[str, tuple[Picture, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class _GeneratedSet:
    setup: GenerationSetup
    pictures: Sequence[Picture]
    scores: Sequence[CaptionScore]
    features: Features
    spread: float
    clip: float | None
    inception: Features | None


def shapes_caption_set(count: int) -> CaptionSet:
    """The first captions that no training has seen."""
    scenes = tuple(held_out_captions(count))
    return CaptionSet(tuple(str(caption) for _, caption in scenes), scenes)


def compare_setups(
    setups: Sequence[GenerationSetup],
    captions: CaptionSet,
    encoder: FeatureFn,
    progress: ProgressFn = lambda name, done, total: None,
    encoders: MetricEncoders = NO_ENCODERS,
) -> Comparison:
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
    texts = captions.prompts
    scenes = [render_scene(scene) for scene, _ in captions.scenes]
    true = encoder(scenes) if scenes else None
    timings = _time_setups(setups, texts[0])
    drawn: list[_GeneratedSet] = []
    for way in setups:
        requests = [replace(way.request, prompt=text, seed=number) for number, text in enumerate(texts)]
        several = [
            replace(way.request, prompt=text, seed=seed)
            for text in texts[:DIVERSITY_PROMPTS]
            for seed in range(DIVERSITY_SEEDS)
        ]
        pictures = _generate(way, [*requests, *several], progress)
        own, others = pictures[: len(texts)], encoder(pictures[len(texts) :])
        groups = others.reshape(-1, DIVERSITY_SEEDS, others.shape[1])
        scores = [score_picture(picture, caption) for picture, (_, caption) in zip(own, captions.scenes, strict=False)]
        clip = float(encoders.clip(own, texts).mean()) if encoders.clip else None
        inception = encoders.inception(own) if encoders.inception else None
        drawn.append(_GeneratedSet(way, own, scores, encoder(own), prompt_diversity(groups), clip, inception))
    reference = drawn[0].features if true is None else true
    seen = encoders.inception(scenes) if encoders.inception and scenes else drawn[0].inception
    standings = tuple(
        _evaluate_set(one, drawn[0], reference, seen, summarise(timings[one.setup.name])) for one in drawn
    )
    return Comparison(
        standings, texts[:SHOWN_PICTURES], {one.setup.name: tuple(one.pictures[:SHOWN_PICTURES]) for one in drawn}
    )


def paired_delta(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> ScoreDelta:
    """The mean of paired differences, with its percentile bootstrap interval over pairs (Efron 1979), seeded.

    >>> gap(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    Gap(value=1.0, low=1.0, high=1.0)
    """
    differences = ours - theirs
    drawn = np.random.default_rng(0).choice(differences, size=(_RESAMPLES, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    return ScoreDelta(float(differences.mean()), float(low), float(high))


def _evaluate_set(
    generated: _GeneratedSet, baseline: _GeneratedSet, true: Features, true_inception: Features | None, alone: Timing
) -> EvaluationResult:
    way = generated.setup
    resolved = way.pipeline.resolve(way.request)
    request = resolved.request
    assert request.steps and request.sampler and request.guidance is not None
    rows = sum(resolved.plan.rows)
    pairs = list(zip(baseline.pictures, generated.pictures, strict=True))
    lying = precision_recall(true, generated.features)
    return EvaluationResult(
        name=way.name,
        steps=request.steps,
        sampler=request.sampler,
        guidance=request.guidance,
        rows=rows,
        alone=alone,
        scores=score_shares(generated.scores) if generated.scores else {},
        gaps={
            name: paired_delta(_score_values(generated.scores, name), _score_values(baseline.scores, name))
            for name in DELTA_SCORES
            if generated.scores
        },
        rerender=float(np.mean([each.rerender for each in generated.scores])) if generated.scores else None,
        psnr=float(np.mean([psnr(*pair) for pair in pairs])),
        ssim=float(np.mean([ssim(*pair) for pair in pairs])),
        frechet=frechet_distance(true, generated.features),
        precision=lying.precision,
        recall=lying.recall,
        diversity=generated.spread / baseline.spread,
        clip=generated.clip,
        fid=None
        if true_inception is None or generated.inception is None
        else frechet_distance(true_inception, generated.inception),
    )


def _score_values(scores: Sequence[CaptionScore], name: str) -> NDArray[np.float64]:
    assert name in SCORES
    return np.array([float(getattr(one, name)) for one in scores])


def _generate(setup: GenerationSetup, requests: Sequence[ImageRequest], progress: ProgressFn) -> list[Picture]:
    pictures: list[Picture] = []
    for begin in range(0, len(requests), _BATCH):
        pictures += generate_batch(setup.pipeline, requests[begin : begin + _BATCH])
        progress(setup.name, len(pictures), len(requests))
    return pictures


def _time_setups(setups: Sequence[GenerationSetup], text: str) -> dict[str, list[float]]:
    """Seconds of one picture at a time, every way once a round."""

    def timed(way: GenerationSetup) -> float:
        began = perf_counter()
        generate_batch(way.pipeline, [replace(way.request, prompt=text)])
        return perf_counter() - began

    for way in setups:
        timed(way)
    return run_interleaved({way.name: lambda way=way: timed(way) for way in setups}, _ROUNDS)  # type: ignore[misc]


def student_setup(pipeline: Pipeline, guidance: float) -> GenerationSetup:
    """A student as it draws by default, by this guidance; its name says how many steps it takes."""
    asked = ImageRequest("", guidance=guidance)
    steps = pipeline.resolve(asked).request.steps
    return GenerationSetup(f"{pipeline.manifest.name}, {steps} step{'s' if steps != 1 else ''}", pipeline, asked)


def comparison_setups(teacher: GenerationSetup, students: Sequence[GenerationSetup]) -> list[GenerationSetup]:
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
    for steps in dict.fromkeys(_resolved_steps(student) for student in students):
        for sampler in FEW_STEP_BASELINES:
            for count, guidance, told in (
                (max(1, -(-steps // 2)), None, "guided"),
                (steps, 1.0, "unguided"),
                (steps, None, "guided"),
            ):
                name = f"{sampler} {count} {told}"
                asked = replace(teacher.request, steps=count, guidance=guidance, sampler=sampler)
                if name not in {way.name for way in ways}:
                    ways.append(GenerationSetup(name, teacher.pipeline, asked))
    return ways


def _resolved_steps(setup: GenerationSetup) -> int:
    steps = setup.pipeline.resolve(setup.request).request.steps
    assert steps is not None
    return steps
