"""Messages between server and worker arrive as they were sent, pictures, plans and curves included."""

from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core import ImageRequest
from stillhouse.diffusion import (
    MAX_SEED,
    SAMPLERS,
    Guidance,
    SamplingPlan,
    Schedule,
    classifier_free,
    make_grid,
)
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.worker.engine_process import preview_steps
from stillhouse.serve.worker.locate_pipeline import PipelineReference
from stillhouse.serve.worker.messages import (
    Cancel,
    Command,
    Event,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
)
from stillhouse.workers.channel import encode_message, make_decoder
from tests.diffusion.plans import PIX2PIX, count_plans

GROUP = BatchKey("model", 64, 64)
PLAIN = ImageRequest("a", "b", 2**63 - 1, 3, 2.5, "heun", 64, 64, strength=0.5, guidance_interval=(0.1, 0.9))


def same(request: ImageRequest, other: ImageRequest) -> bool:
    return all(
        np.array_equal(getattr(request, field.name), getattr(other, field.name))
        if isinstance(getattr(request, field.name), np.ndarray)
        else getattr(request, field.name) == getattr(other, field.name)
        for field in fields(ImageRequest)
    )


@st.composite
def sampling_plans(draw: st.DrawFn) -> SamplingPlan:
    sampler = draw(st.sampled_from(sorted(SAMPLERS)))
    grid = make_grid(Schedule(), draw(st.integers(1, 9)), sigmas=draw(st.sampled_from(["schedule", "karras"])))
    start = draw(st.floats(0, 1))
    interval = (start, draw(st.floats(start, 1)))
    guidance = draw(st.sampled_from([Guidance(), classifier_free(7.5), PIX2PIX]))
    return SamplingPlan(
        grid.start_at_strength(0.8) if grid.steps > 1 else grid,
        sampler,
        draw(st.sampled_from(["epsilon", "sample", "v_prediction", "flow"])),
        replace(guidance, interval=interval, rescale=draw(st.floats(0, 1))),
        eta=draw(st.floats(0, 1)) if sampler == "ddim" else 0.0,
        seed=draw(st.integers(0, MAX_SEED)),
        cache_interval=draw(st.integers(1, 9)),
    )


@given(st.text(max_size=20), st.integers(1, 9), st.integers(1, 9), sampling_plans(), st.lists(st.integers(1, 512)))
def test_a_request_arrives_with_its_pictures_and_its_plan(
    prompt: str, height: int, width: int, plan: SamplingPlan, extra: list[int]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    request = replace(PLAIN, prompt=prompt, image=image, mask=image[..., 0])
    resolved = Resolved(request, plan, (width, height, *extra))
    key = BatchKey("model", width, height, tuple(extra))
    submit = Submit("id", Tier("pro", 2.0, 4.0), "key", key, StepPlan(plan.rows, 1), resolved, 12.5, "webp", 3)
    with pytest.MonkeyPatch.context() as patch:
        calls = count_plans(patch)
        received = make_decoder(Command).decode(encode_message(submit))
    assert not calls, "the evaluations of a plan arrive with it"
    assert isinstance(received, Submit) and same(received.resolved.request, request)
    assert (received.resolved.plan, received.resolved.batch_key) == (plan, resolved.batch_key)
    assert received.resolved.plan.evaluations == plan.evaluations and received.resolved.plan.rows == plan.rows
    assert msgspec.structs.replace(received, resolved=resolved) == submit


@pytest.mark.parametrize(
    "event",
    [
        Ready([(GROUP, LatencyCurve({1: 1.0, 2: 1.5}, 0.1, 0.2, 0.3))]),
        WorkerFailed("no"),
        StepReport([StepStats(["a", "b"], GROUP, 3, 0.5, 1.1), StepStats(["a"], GROUP, 2, 0.4, 1.0)]),
        PreviewImage("a", 3, b"picture"),
        RequestOutput("a", "finished", b"picture", queue_seconds=0.1, batch_peers=1.5),
        RequestOutput("a", "failed", error="why", error_type="BackendFailed"),
    ],
)
def test_an_event_arrives_as_it_was_sent(event: Event) -> None:
    assert make_decoder(Event).decode(encode_message(event)) == event


def test_a_command_arrives_as_it_was_sent() -> None:
    pipelines = {"a": PipelineReference("model@0123", "b")}
    config = WorkerConfig(pipelines, "slack", 1 << 40, threads=2, curves=[(GROUP, LatencyCurve({1: 1.0}))])
    for command in (Cancel("a"), config):
        assert make_decoder(WorkerConfig | Command).decode(encode_message(command)) == command


@given(st.integers(0, 20), st.integers(1, 100))
def test_previews_lie_between_the_beginning_and_the_end_at_even_distances(count: int, evaluations: int) -> None:
    steps = sorted(preview_steps(count, evaluations))
    assert len(steps) <= count and all(0 < step < evaluations for step in steps)
    assert len(steps) == min(count, evaluations - 1)
    gaps = np.diff([0, *steps, evaluations])
    assert len(gaps) == 1 or gaps.max() - gaps.min() <= 1
