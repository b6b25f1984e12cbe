"""Comparison of generation setups on the same captions and seeds.

A setup is a pipeline with a request (steps, sampler, guidance). A student of 3 steps is thus compared with its teacher
at 3 steps with other samplers, which shows the gain of distillation.
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
"""Number of captions of the diversity measure, and number of seeds for each caption."""
DELTA_SCORES = ("all_correct", "strict", "clean")
"""Scores whose difference from the baseline is reported."""
FEW_STEP_BASELINES = ("ddim", "dpmpp_2m")
"""Samplers with which the teacher at few steps is a baseline for the students."""
SHOWN_PICTURES = 8
"""Number of pictures of each setup that `Comparison` holds."""
_BATCH, _RESAMPLES, _ROUNDS = 8, 2000, 7

NO_ENCODERS = MetricEncoders()
FeatureFn = Callable[[Sequence[Picture]], Features]
"""Maps pictures to features."""
ProgressFn = Callable[[str, int, int], None]
"""Receives the name of a setup, the number of pictures generated, and the total."""


@dataclass(frozen=True, slots=True, eq=False)
class GenerationSetup:
    """A pipeline with a request that gives steps, sampler and guidance; the request's prompt and seed are replaced."""

    name: str
    pipeline: Pipeline
    request: ImageRequest


@dataclass(frozen=True, slots=True)
class ScoreDelta:
    """Difference between a setup's mean score and the baseline's, with its 95 % interval (paired bootstrap)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Measurements of one setup. The baseline is the first setup.

    Args:
        name: name of the setup.
        steps, sampler, guidance: settings of the resolved request.
        denoiser_rows: number of rows that the denoiser evaluates for one picture; classifier-free guidance takes two
            rows for each evaluation.
        latency: seconds to generate one picture, with one picture at a time.
        scores: mean scores of the oracle; empty for captions outside Shapes.
        deltas: differences from the baseline's scores, for `DELTA_SCORES`.
        rerender: mean PSNR in dB between a picture and an ideal rendering of the recognised scene; None without scores.
        psnr, ssim: mean over pictures; each is compared with the baseline's picture of the same caption and seed.
        frechet: Frechet distance between the features of the pictures and of the reference. The reference is rendered
            scenes, or for captions outside Shapes the baseline's pictures.
        precision, recall: precision and recall of the features against the same reference.
        relative_diversity: spread of the pictures of one caption, as a share of the baseline's spread.
        clip, fid: mean CLIP score, and Frechet distance of Inception features; None without these encoders.
    """

    name: str
    steps: int
    sampler: str
    guidance: float
    denoiser_rows: int
    latency: Timing
    scores: Mapping[str, Share]
    deltas: Mapping[str, ScoreDelta]
    rerender: float | None
    psnr: float
    ssim: float
    frechet: float
    precision: float
    recall: float
    relative_diversity: float
    clip: float | None = None
    fid: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CaptionSet:
    """Prompts of an evaluation.

    Args:
        prompts: one for each picture.
        scenes: a scene and its caption for each prompt; empty for prompts outside Shapes.
    """

    prompts: tuple[str, ...]
    scenes: tuple[tuple[Scene, Description], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Result of `compare_setups`.

    Args:
        results: one result for each setup, the baseline's first.
        prompts: the first `SHOWN_PICTURES` prompts.
        pictures: pictures of these prompts, by name of the setup.
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
    """Return the first `count` held-out captions with their scenes."""
    scenes = tuple(held_out_captions(count))
    return CaptionSet(tuple(str(caption) for _, caption in scenes), scenes)


def compare_setups(
    setups: Sequence[GenerationSetup],
    captions: CaptionSet,
    encoder: FeatureFn,
    progress: ProgressFn = lambda name, done, total: None,
    encoders: MetricEncoders = NO_ENCODERS,
) -> Comparison:
    """Generate pictures with each setup, measure them, and compare them with the pictures of the first setup.

    Args:
        setups: setups to compare; the first one is the baseline.
        captions: prompts; prompt n has the seed n.
        encoder: maps pictures to features.
        progress: receives the number of pictures generated for each setup.
        encoders: optional CLIP and Inception encoders.

    Raises:
        InvalidRequest: a pipeline refuses its request.
    """
    scenes = [render_scene(scene) for scene, _ in captions.scenes]
    timings = _time_setups(setups, captions.prompts[0])
    generated = [_generate_set(setup, captions, encoder, progress, encoders) for setup in setups]
    baseline = generated[0]
    true = encoder(scenes) if scenes else baseline.features
    true_inception = encoders.inception(scenes) if encoders.inception and scenes else baseline.inception
    results = tuple(
        _evaluate_set(own, baseline, true, true_inception, summarise(timings[own.setup.name])) for own in generated
    )
    pictures = {own.setup.name: tuple(own.pictures[:SHOWN_PICTURES]) for own in generated}
    return Comparison(results, captions.prompts[:SHOWN_PICTURES], pictures)


def _generate_set(
    setup: GenerationSetup, captions: CaptionSet, encoder: FeatureFn, progress: ProgressFn, encoders: MetricEncoders
) -> _GeneratedSet:
    """Generate the pictures of a setup, one for each prompt and more for the diversity measure, and encode them."""
    texts = captions.prompts
    requests = [replace(setup.request, prompt=text, seed=number) for number, text in enumerate(texts)]
    repeated = [
        replace(setup.request, prompt=text, seed=seed)
        for text in texts[:DIVERSITY_PROMPTS]
        for seed in range(DIVERSITY_SEEDS)
    ]
    pictures = _generate(setup, [*requests, *repeated], progress)
    own, features = pictures[: len(texts)], encoder(pictures[len(texts) :])
    return _GeneratedSet(
        setup=setup,
        pictures=own,
        scores=[score_picture(picture, caption) for picture, (_, caption) in zip(own, captions.scenes, strict=False)],
        features=encoder(own),
        spread=prompt_diversity(features.reshape(-1, DIVERSITY_SEEDS, features.shape[1])),
        clip=float(encoders.clip(own, texts).mean()) if encoders.clip else None,
        inception=encoders.inception(own) if encoders.inception else None,
    )


def paired_delta(scores: NDArray[np.float64], baseline: NDArray[np.float64]) -> ScoreDelta:
    """Return the mean of paired differences with its 95 % percentile bootstrap interval over pairs (Efron 1979).

    >>> paired_delta(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    ScoreDelta(value=1.0, low=1.0, high=1.0)
    """
    differences = scores - baseline
    resamples = np.random.default_rng(0).choice(differences, size=(_RESAMPLES, len(differences)))
    low, high = np.quantile(resamples.mean(axis=1), (0.025, 0.975))
    return ScoreDelta(float(differences.mean()), float(low), float(high))


def _evaluate_set(
    generated: _GeneratedSet, baseline: _GeneratedSet, true: Features, true_inception: Features | None, latency: Timing
) -> EvaluationResult:
    setup = generated.setup
    resolved = setup.pipeline.resolve(setup.request)
    request = resolved.request
    assert request.steps and request.sampler and request.guidance is not None
    rows = sum(resolved.plan.rows)
    pairs = list(zip(baseline.pictures, generated.pictures, strict=True))
    overlap = precision_recall(true, generated.features)
    return EvaluationResult(
        name=setup.name,
        steps=request.steps,
        sampler=request.sampler,
        guidance=request.guidance,
        denoiser_rows=rows,
        latency=latency,
        scores=score_shares(generated.scores) if generated.scores else {},
        deltas={
            name: paired_delta(_score_values(generated.scores, name), _score_values(baseline.scores, name))
            for name in DELTA_SCORES
            if generated.scores
        },
        rerender=float(np.mean([score.rerender for score in generated.scores])) if generated.scores else None,
        psnr=float(np.mean([psnr(*pair) for pair in pairs])),
        ssim=float(np.mean([ssim(*pair) for pair in pairs])),
        frechet=frechet_distance(true, generated.features),
        precision=overlap.precision,
        recall=overlap.recall,
        relative_diversity=generated.spread / baseline.spread,
        clip=generated.clip,
        fid=None
        if true_inception is None or generated.inception is None
        else frechet_distance(true_inception, generated.inception),
    )


def _score_values(scores: Sequence[CaptionScore], name: str) -> NDArray[np.float64]:
    assert name in SCORES
    return np.array([float(getattr(score, name)) for score in scores])


def _generate(setup: GenerationSetup, requests: Sequence[ImageRequest], progress: ProgressFn) -> list[Picture]:
    pictures: list[Picture] = []
    for start in range(0, len(requests), _BATCH):
        pictures += generate_batch(setup.pipeline, requests[start : start + _BATCH])
        progress(setup.name, len(pictures), len(requests))
    return pictures


def _time_setups(setups: Sequence[GenerationSetup], text: str) -> dict[str, list[float]]:
    """Return the measured seconds to generate one picture, by setup; each round measures every setup once."""

    def measure(setup: GenerationSetup) -> float:
        started = perf_counter()
        generate_batch(setup.pipeline, [replace(setup.request, prompt=text)])
        return perf_counter() - started

    for setup in setups:
        measure(setup)
    runs = {setup.name: lambda setup=setup: measure(setup) for setup in setups}
    return run_interleaved(runs, _ROUNDS)


def student_setup(pipeline: Pipeline, guidance: float) -> GenerationSetup:
    """Return the setup of a student at its default steps and a guidance scale; the setup's name has the steps."""
    request = ImageRequest("", guidance=guidance)
    steps = pipeline.resolve(request).request.steps
    return GenerationSetup(f"{pipeline.manifest.name}, {steps} step{'s' if steps != 1 else ''}", pipeline, request)


def comparison_setups(teacher: GenerationSetup, students: Sequence[GenerationSetup]) -> list[GenerationSetup]:
    """Return the teacher, its students, and the teacher at few steps with each of `FEW_STEP_BASELINES`.

    Guided evaluations have two rows. For a student of three steps the baselines are therefore two guided steps, three
    unguided steps (as many rows as the student), and three guided steps (twice as many).

    Args:
        teacher: setup of the teacher at its default steps.
        students: setups of the students; where two have the same name, a number is added to the names.
    """
    names = [student.name for student in students]
    numbered = [
        replace(student, name=f"{student.name} ({number})") if names.count(student.name) > 1 else student
        for number, student in enumerate(students, 1)
    ]
    setups = [teacher, *numbered]
    for steps in dict.fromkeys(_resolved_steps(student) for student in students):
        for sampler in FEW_STEP_BASELINES:
            for count, guidance, label in (
                (max(1, -(-steps // 2)), None, "guided"),
                (steps, 1.0, "unguided"),
                (steps, None, "guided"),
            ):
                name = f"{sampler} {count} {label}"
                request = replace(teacher.request, steps=count, guidance=guidance, sampler=sampler)
                if name not in {setup.name for setup in setups}:
                    setups.append(GenerationSetup(name, teacher.pipeline, request))
    return setups


def _resolved_steps(setup: GenerationSetup) -> int:
    steps = setup.pipeline.resolve(setup.request).request.steps
    assert steps is not None
    return steps
