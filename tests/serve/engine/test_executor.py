"""Executor: a served image equals the offline one in any batch; measurement of latency curves."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.backends import openvino
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.core import ImageRequest
from stillhouse.diffusion import Guidance
from stillhouse.errors import BackendFailed
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import Distilled, write_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.executor import (
    PipelineExecutor,
    default_request,
    measure_latency_curve,
    trajectory_of,
)
from stillhouse.serve.engine.job import BatchKey, Job, Tier, make_batch_key, plan_steps
from stillhouse.serve.engine.simulate import VirtualExecutor
from tests.checkpoints import write_checkpoint

COMPOSITIONS = 200
GROUP = BatchKey("shapes", 64, 64)
FREE = Tier("free")
KINDS = (
    ImageRequest("a small red circle", steps=3),
    ImageRequest("a big blue square", steps=6, sampler="dpmpp_2m", guidance=5.0),
    ImageRequest("a big green triangle on a white background", steps=5, guidance=1.0),
    ImageRequest("a small yellow circle", negative_prompt="red", steps=4, sampler="euler_ancestral"),
    ImageRequest("", steps=3, sampler="heun", guidance=2.0, guidance_rescale=0.7),
    ImageRequest("a big red square", steps=6, sampler="unipc", guidance_interval=(0.2, 0.7)),
    ImageRequest("a small blue triangle", steps=5, eta=0.5),
)


@dataclass
class RandomPolicy:
    """Policy with a random order, so that any jobs may share a batch."""

    dice: random.Random

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        return self.dice.sample(list(jobs), len(jobs))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "openvino bf16", None])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    backend, _, precision = (request.param or "").partition(" ")
    if precision and precision not in openvino.status().precisions:
        pytest.skip(f"this processor has no {precision}")
    return load("shapes", backend=backend or None, precision=precision or None, threads=1)


def job(pipeline: Pipeline, name: str, request: ImageRequest) -> Job:
    resolved = pipeline.resolve(request)
    steps = plan_steps(pipeline.manifest, resolved)
    return Job(name, FREE, "someone", make_batch_key("shapes", resolved), steps, resolved)


def test_batching_does_not_change_an_image(pipeline: Pipeline) -> None:
    alone = [pipeline.generate(**asked_of(variant)).image for variant in KINDS]
    cost = CostModel({GROUP: LatencyCurve({1: 1.0, 8: 1.0})})
    engine = Engine(
        PipelineExecutor({"shapes": pipeline}), RandomPolicy(random.Random(0)), cost, VirtualExecutor(cost).clock
    )
    compositions: set[tuple[tuple[str, int], ...]] = set()
    number = generated = 0
    while len(compositions) < COMPOSITIONS or engine.jobs:
        while len(compositions) < COMPOSITIONS and len(engine.jobs) < 10:
            variant = number % len(KINDS)
            engine.submit(job(pipeline, f"{number} of kind {variant}", KINDS[variant]))
            number += 1
        tick = engine.step()
        compositions.add(tuple((moved.id, moved.index) for moved in tick.jobs))
        assert not tick.outputs
        for done in tick.finished:
            image = pipeline.finish(trajectory_of(done)).image
            np.testing.assert_array_equal(image, alone[int(done.id[-1])], err_msg=done.id)
            generated += 1
    assert generated == number


def asked_of(request: ImageRequest) -> dict[str, Any]:
    fields = ImageRequest.__dataclass_fields__
    return {name: getattr(request, name) for name in fields}


def test_step_plan_has_the_rows_of_every_evaluation(pipeline: Pipeline) -> None:
    for variant in KINDS:
        trajectory = pipeline.start(variant)
        rows = []
        while not trajectory.is_done:
            rows.append(trajectory.rows)
            trajectory.index += 1
        assert plan_steps(pipeline.manifest, pipeline.resolve(variant)).rows == tuple(rows)


def test_latency_curve_is_measured_for_each_batch(pipeline: Pipeline) -> None:
    curve = measure_latency_curve(pipeline, GROUP, batches=(1, 2), calls=2)
    assert set(curve.seconds) == {1, 2}
    assert min(curve.seconds.values()) > 0 and curve.encode_text > 0 and curve.decode > 0 and curve.encode_image > 0


def test_out_of_memory_ends_the_measurement(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Pipeline.advance

    def small(self: Pipeline, trajectories: Any) -> None:
        if len(trajectories) > most:
            raise BackendFailed("torch could not run unet/model.onnx: CUDA out of memory")
        advance(self, trajectories)

    monkeypatch.setattr(Pipeline, "advance", small)
    most = 2
    assert set(measure_latency_curve(pipeline, GROUP, batches=(1, 2, 4, 8), calls=1).seconds) == {1, 2}
    most = 0
    with pytest.raises(BackendFailed, match="out of memory"):
        measure_latency_curve(pipeline, GROUP, batches=(1, 2), calls=1)


def test_warm_up_calls_are_not_counted(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of each kind compiles. Counted, it made images appear five times as slow."""
    now, opened = 0.0, set[tuple[str, int]]()

    def takes(name: str, seconds: float) -> None:
        call = getattr(Pipeline, name)

        def timed(self: Pipeline, problem: Any, **options: Any) -> Any:
            nonlocal now
            rows = len(problem) if isinstance(problem, list) else 1
            now += seconds if (name, rows) in opened else 100.0
            opened.add((name, rows))
            return call(self, problem, **options)

        monkeypatch.setattr(Pipeline, name, timed)

    for name, seconds in {"advance": 0.5, "decode": 0.25, "encode_image": 0.125, "encode_prompt": 0.0625}.items():
        takes(name, seconds)
    monkeypatch.setattr("stillhouse.serve.engine.executor.perf_counter", lambda: now)
    assert measure_latency_curve(pipeline, GROUP, batches=(1, 2)) == LatencyCurve({1: 0.5, 2: 0.5}, 0.0625, 0.25, 0.125)


@pytest.mark.parametrize(("seconds", "calls", "expected"), [((0.5, 0.2, 0.3), 4, 0.3), ((9.0, 0.2, 0.3), 2, 9.0)])
def test_only_quick_calls_are_repeated(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], calls: int, expected: float
) -> None:
    """After a warm-up call, three calls of less than two seconds are timed, and one of more."""
    now, decoded, decode = 0.0, 0, Pipeline.decode

    def advance(self: Pipeline, trajectories: Any) -> None:
        nonlocal now
        now += 1.0

    def timed(self: Pipeline, latents: Any) -> Any:
        nonlocal now, decoded
        now += 100.0 if decoded == 0 else seconds[decoded - 1]
        decoded += 1
        return decode(self, latents)

    monkeypatch.setattr(Pipeline, "advance", advance)
    monkeypatch.setattr(Pipeline, "decode", timed)
    monkeypatch.setattr("stillhouse.serve.engine.executor.perf_counter", lambda: now)
    curve = measure_latency_curve(pipeline, GROUP, batches=(1,), calls=3)
    assert decoded == calls and curve.decode == pytest.approx(expected)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("variant", ["shapes", "inpaint"])
def test_step_plan_has_the_number_of_encoded_images(
    variant: str, strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variant == "inpaint":
        write_checkpoint(variant, tmp_path / "checkpoint")
        import_model(tmp_path / "checkpoint", tmp_path / "pipeline", ImportOptions("tiny"))
    pipeline = load(tmp_path / "pipeline" if variant == "inpaint" else "shapes", threads=1)
    ran: list[str] = []
    run = pipeline.run

    def counted(name: str, feeds: Any) -> Any:
        ran.append(name)
        return run(name, feeds)

    monkeypatch.setattr(pipeline, "run", counted)
    default = default_request(pipeline.manifest)
    assert default.width and default.height
    image = np.full((default.height, default.width, 3), 127, np.uint8)
    edit = replace(default, image=image, strength=strength, mask=np.full(image.shape[:2], 255, np.uint8))
    for request in [edit] if variant == "inpaint" else [default, replace(edit, mask=None), edit]:
        ran.clear()
        pipeline.start(request)
        assert plan_steps(pipeline.manifest, pipeline.resolve(request)).encoded_images == ran.count("encoder")


def test_timing_waits_for_the_device(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU call returns early: the engine waits after each step, a measurement before and after each batch."""
    heard: list[str] = []
    moved = Pipeline.advance

    def advance(self: Pipeline, trajectories: Any) -> None:
        heard.append("advance")
        moved(self, trajectories)

    monkeypatch.setattr(Pipeline, "advance", advance)
    monkeypatch.setattr(Pipeline, "synchronize", lambda self: heard.append("synchronize"))
    item = job(pipeline, "one", ImageRequest("a red circle", steps=None))
    executor = PipelineExecutor({item.batch_key.pipeline: pipeline})
    executor.begin(item)
    executor.advance([item])
    assert heard == ["advance", "synchronize"]
    heard.clear()
    measure_latency_curve(pipeline, item.batch_key, batches=(1,), calls=1)
    assert heard == ["synchronize", "advance", "synchronize"] * 2


def test_a_request_that_the_pipeline_cannot_meet_fails_by_itself(pipeline: Pipeline) -> None:
    """One of another pipeline, whose guidance takes a branch that this one has not."""
    cost = CostModel({GROUP: LatencyCurve({1: 1.0, 8: 1.0})})
    engine = Engine(
        PipelineExecutor({"shapes": pipeline}), RandomPolicy(random.Random(0)), cost, VirtualExecutor(cost).clock
    )
    good, bad = job(pipeline, "good", KINDS[0]), job(pipeline, "bad", KINDS[0])
    foreign = Guidance(base="image", terms=(("conditional", 2.0),))
    bad.resolved = replace(bad.resolved, plan=replace(bad.resolved.plan, guidance=foreign))
    engine.submit(good)
    engine.submit(bad)
    ends: dict[str, str] = {}
    while engine.jobs:
        step = engine.step()
        ends |= {done.id: "finished" for done in step.finished}
        ends |= {output.id: output.finish_reason for output in step.outputs}
    assert ends == {"good": "finished", "bad": "failed"}


@pytest.mark.parametrize("variant", ["inpaint", "student"])
def test_inpainting_and_distilled_pipelines_are_measured(tmp_path: Path, variant: str) -> None:
    """One needs an image and a mask; the other has three steps and a guidance of at least 2."""
    write_checkpoint("inpaint" if variant == "inpaint" else "sd2", tmp_path / "checkpoint")
    manifest = import_model(tmp_path / "checkpoint", tmp_path / "pipeline", ImportOptions("tiny"))
    if variant == "student":
        taught = Distilled((999.0, 656.0, 342.0), (2.0, 8.0), "progressive", ("tiny", "0" * 64))
        defaults = replace(manifest.defaults, steps=3, guidance=4.0, sampler="ddim")
        write_manifest(tmp_path / "pipeline", replace(manifest, distilled=taught, defaults=defaults))
    pipeline = load(tmp_path / "pipeline")
    defaults = pipeline.manifest.defaults
    curve = measure_latency_curve(pipeline, BatchKey("tiny", defaults.width, defaults.height), batches=(1, 2), calls=2)
    assert set(curve.seconds) == {1, 2} and min(curve.seconds.values()) > 0
    assert plan_steps(pipeline.manifest, pipeline.resolve(default_request(pipeline.manifest))).rows
