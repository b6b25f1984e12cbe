"""Messages: what one side says is what the other side hears, pictures and curves included."""

from dataclasses import fields, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core import ImageRequest
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey, Tier
from stillhouse.serve.worker.messages import (
    Cancel,
    Event,
    OutputEvent,
    Preview,
    Ready,
    RequestOutput,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
    decode_command,
    decode_config,
    decode_event,
    encode_message,
)
from stillhouse.serve.worker.process import preview_steps

GROUP = BatchKey("model", 64, 64)
PLAIN = ImageRequest("a", "b", 2**63 - 1, 3, 2.5, "heun", 64, 64, strength=0.5, guidance_interval=(0.1, 0.9))


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        if isinstance(getattr(one, field.name), np.ndarray)
        else getattr(one, field.name) == getattr(other, field.name)
        for field in fields(ImageRequest)
    )


@given(st.text(max_size=20), st.integers(1, 9), st.integers(1, 9))
def test_a_request_arrives_with_its_pictures(prompt: str, height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    request = replace(PLAIN, prompt=prompt, image=image, mask=image[..., 0])
    sent = Submit("id", Tier("pro", 2.0, 4.0), "key", "model", request, 12.5, "webp", 3)
    heard = decode_command(encode_message(sent))
    assert isinstance(heard, Submit) and same(heard.request, request)
    assert msgspec.structs.replace(heard, request=request) == sent


@pytest.mark.parametrize(
    "told",
    [
        Ready([(GROUP, LatencyCurve({1: 1.0, 2: 1.5}, 0.1, 0.2, 0.3))]),
        WorkerFailed("no"),
        StepReport([StepStats(["a", "b"], GROUP, 3, 0.5, 1.1), StepStats(["a"], GROUP, 2, 0.4, 1.0)]),
        Preview("a", 3, b"picture"),
        OutputEvent("a", RequestOutput("drawn", b"picture", queue_seconds=0.1, batch_peers=1.5)),
        OutputEvent("a", RequestOutput("failed", error="why", error_type="BackendFailed")),
    ],
)
def test_what_is_told_is_heard(told: Event) -> None:
    assert decode_event(encode_message(told)) == told


def test_what_is_asked_and_said_first_is_heard() -> None:
    assert decode_command(encode_message(Cancel("a"))) == Cancel("a")
    opening = WorkerConfig({"a": "b"}, "slack", 1 << 40, threads=2, curves=[(GROUP, LatencyCurve({1: 1.0}))])
    assert decode_config(encode_message(opening)) == opening


@given(st.integers(0, 20), st.integers(1, 100))
def test_previews_lie_between_the_beginning_and_the_end_at_even_distances(count: int, evaluations: int) -> None:
    at = sorted(preview_steps(count, evaluations))
    assert len(at) <= count and all(0 < one < evaluations for one in at)
    assert len(at) == min(count, evaluations - 1)
    gaps = np.diff([0, *at, evaluations])
    assert len(gaps) == 1 or gaps.max() - gaps.min() <= 1
