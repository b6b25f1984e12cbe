"""Compare ways to generate pictures (setups) on the same captions and seeds.

A setup is a pipeline with a number of steps, a sampler and a guidance scale. A student of 3 steps can thus be compared
with its teacher at 3 steps with other samplers, which shows the gain of distillation.
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
"""Number of captions for which diversity is measured, and number of pictures of each caption, with seeds from 0."""
DELTA_SCORES = ("all_correct", "strict", "clean")
"""Names of the oracle's scores whose difference from the baseline is reported.

The oracle recognises the figures in a picture. all_correct: the picture shows everything that the caption says. clean:
edges are sharp and colours flat. strict: both are true."""
FEW_STEP_BASELINES = ("ddim", "dpmpp_2m")
"""Names of the samplers with which the teacher at few steps is compared with its students."""
SHOWN_PICTURES = 8
"""Number of pictures of each setup that a report shows."""
_BATCH, _RESAMPLES, _ROUNDS = 8, 2000, 7

NO_ENCODERS = MetricEncoders()
FeatureFn = Callable[[Sequence[Picture]], Features]
"""Maps pictures, uint8 [height, width, 3] each, to feature vectors, float64 [pictures, features]."""
ProgressFn = Callable[[str, int, int], None]
"""Receives the name of a setup, the number of pictures that it has generated, and the number that it will generate."""


@dataclass(frozen=True, slots=True, eq=False)
class GenerationSetup:
    """A way to generate pictures: a pipeline, and a request that gives steps, sampler and guidance.

    Prompt and seed of the request are replaced for each picture.
    """

    name: str
    pipeline: Pipeline
    request: ImageRequest


@dataclass(frozen=True, slots=True)
class ScoreDelta:
    """Difference of two mean scores, -1 to 1, with its 95 % confidence interval from `low` to `high`.

    `value` is the mean score of a setup minus that of the baseline. The interval is a paired bootstrap's.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Measurements of one setup (pipeline with steps, sampler and guidance).

    The baseline is the first setup of the comparison. Captions of Shapes describe scenes of geometric figures, which
    the oracle recognises in pictures.

    Args:
        name: name of the setup.
        steps, sampler, guidance: settings with which the pictures were generated.
        denoiser_rows: number of rows that the denoiser evaluates for one picture; classifier-free guidance takes two
            rows for each evaluation.
        latency: seconds to generate one picture, with one picture at a time.
        scores: share of the pictures with the full score of the oracle, by name of the score; empty for captions
            outside Shapes.
        deltas: differences from the baseline's mean scores, by name of the score; empty for captions outside Shapes.
        rerender: mean PSNR in dB between a picture and an ideal rendering of the recognised scene; None for captions
            outside Shapes.
        psnr, ssim: mean PSNR in dB and mean SSIM of the pictures, each against the baseline's picture of the same
            caption and seed.
        frechet: Frechet distance between the features of the pictures and of the reference: rendered scenes, or for
            captions outside Shapes the baseline's pictures.
        precision, recall: share of the pictures within the reference's distribution of features, and share of the
            reference within the pictures' distribution, 0 to 1.
        relative_diversity: spread of the pictures of one caption, divided by the baseline's spread.
        clip: mean CLIP score, 0 to 100; None: not measured.
        fid: Frechet distance of Inception features; None: not measured.
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
    """Prompts of an evaluation; captions of Shapes (pictures of geometric figures) come with their scenes.

    Args:
        prompts: one prompt for each picture.
        scenes: for each prompt a scene of geometric figures that the prompt describes, and the prompt as a structured
            caption; empty for prompts outside Shapes.
    """

    prompts: tuple[str, ...]
    scenes: tuple[tuple[Scene, Description], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Result of `compare_setups`.

    Args:
        results: measurements of each setup, the baseline's first.
        prompts: the first 8 prompts, for a report.
        pictures: pictures of these 8 prompts, by name of the setup.
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
    """Return a set of `count` captions that training never used, each with a scene that the caption describes."""
    scenes = tuple(held_out_captions(count))
    return CaptionSet(tuple(str(caption) for _, caption in scenes), scenes)


def compare_setups(
    setups: Sequence[GenerationSetup],
    captions: CaptionSet,
    encoder: FeatureFn,
    progress: ProgressFn = lambda name, done, total: None,
    encoders: MetricEncoders = NO_ENCODERS,
) -> Comparison:
    """Generate pictures with each setup, measure their quality and latency, and compare them with the first setup's.

    Args:
        setups: pipelines with steps, sampler and guidance; the first one is the baseline.
        captions: prompts of the pictures; prompt n has the seed n.
        encoder: maps pictures to the feature vectors of Frechet distance, precision, recall and diversity.
        progress: receives the number of pictures generated for each setup.
        encoders: encoders for CLIP score and FID; each of these is measured only where its encoder is given.

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
    """Generate the pictures of a setup, score them and encode them into features.

    One picture is generated for each prompt. Diversity is measured on 16 more pictures (seeds 0 to 15) for each of the
    first 32 prompts.

    Args:
        setup: pipeline with steps, sampler and guidance.
        captions: prompts of the pictures; prompt n has the seed n.
        encoder: maps pictures to the feature vectors of Frechet distance, precision, recall and diversity.
        progress: receives the number of pictures generated.
        encoders: encoders for CLIP score and FID; each of these is measured only where its encoder is given.
    """
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
    """Return the mean difference of paired scores with its 95 % confidence interval (percentile bootstrap, Efron 1979).

    Args:
        scores: score of each picture of a setup.
        baseline: score of the baseline's picture of the same caption and seed.

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
    """Measure the time to generate one picture with each setup.

    Return the seconds of each of 7 rounds, by name of the setup. Each round measures every setup once, so that all
    setups see the same load of the machine.

    Args:
        setups: setups to measure; each first generates one picture that is not measured.
        text: prompt of all pictures.
    """

    def measure(setup: GenerationSetup) -> float:
        started = perf_counter()
        generate_batch(setup.pipeline, [replace(setup.request, prompt=text)])
        return perf_counter() - started

    for setup in setups:
        measure(setup)
    runs = {setup.name: lambda setup=setup: measure(setup) for setup in setups}
    return run_interleaved(runs, _ROUNDS)


def student_setup(pipeline: Pipeline, guidance: float) -> GenerationSetup:
    """Return a setup that generates with a student at its default number of steps and a guidance scale.

    The setup is named after student and steps, such as "shapes-3, 3 steps".
    """
    request = ImageRequest("", guidance=guidance)
    steps = pipeline.resolve(request).request.steps
    return GenerationSetup(f"{pipeline.manifest.name}, {steps} step{'s' if steps != 1 else ''}", pipeline, request)


def comparison_setups(teacher: GenerationSetup, students: Sequence[GenerationSetup]) -> list[GenerationSetup]:
    """Return the setups to compare: the teacher, its students, and baselines (the teacher at few steps).

    There are baselines with the samplers DDIM and DPM-Solver++ 2M for each student's number of steps. A step with
    classifier-free guidance evaluates two denoiser rows, a student's step one. The baselines of a student of three
    steps are therefore two guided steps, three unguided steps (as many rows as the student's), and three guided steps
    (twice as many).

    Args:
        teacher: setup of the teacher at its default number of steps.
        students: setups of the students; students of the same name get a number after the name.
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
