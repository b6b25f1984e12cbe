"""Spans: one per request under the client's span, with a child per stage."""

import pytest

pytest.importorskip("opentelemetry.sdk")

from dataclasses import replace

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stillhouse.core import ImageRequest
from stillhouse.serve.client import Client
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.engine.simulate import NO_REQUEST
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.tracing import make_tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def spans(trace: str | None, output: RequestOutput) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracer = make_tracer(SimpleSpanProcessor(exporter))
    request = ImageRequest("a red circle", steps=3, width=64, height=64)
    generation_request = GenerationRequest(request, Client("k", "free", frozenset()), traceparent=trace)
    job = Job(
        "id", Tier("free"), "k", BatchKey("shapes", 64, 64), StepPlan((2, 2, 2)), replace(NO_REQUEST, request=request)
    )
    tracer.record_request(RequestHandle(generation_request, job, "free", 1000.0), output, 1006.0)
    tracer.close()
    return {span.name.removeprefix("stillhouse."): span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None and span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_request_has_queue_denoise_and_decode_spans() -> None:
    spans_by_name = spans(
        PARENT, RequestOutput("id", "finished", queue_seconds=1.0, denoise_seconds=3.0, decode_seconds=2.0)
    )
    assert {name: seconds(span) for name, span in spans_by_name.items()} == {
        "request": (1000.0, 1006.0),
        "queue": (1000.0, 1001.0),
        "denoise": (1001.0, 1004.0),
        "decode": (1004.0, 1006.0),
    }
    request = spans_by_name["request"]
    assert request.context is not None and f"{request.context.trace_id:032x}" == TRACE
    for name in ("queue", "denoise", "decode"):
        parent = spans_by_name[name].parent
        assert parent is not None and parent.span_id == request.context.span_id
    assert request.attributes is not None and request.attributes["stillhouse.steps"] == 3


def test_a_failed_one_is_an_error_and_without_a_client_s_span_it_has_no_parent() -> None:
    picture = spans(None, RequestOutput("id", "failed", error_type="WorkerDied"))["request"]
    assert picture.parent is None and not picture.status.is_ok and picture.status.description == "WorkerDied"
