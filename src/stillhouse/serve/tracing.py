"""Spans of pictures for OpenTelemetry, an extra: `pip install 'stillhouse[telemetry]'`.

One span a picture, and one for each thing that it waited for; a client's `traceparent` is its parent. Where they go is
said as for every program that speaks OpenTelemetry, by OTEL_EXPORTER_OTLP_ENDPOINT and its like.
"""

from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stillhouse import __version__
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.worker.messages import RequestOutput

_NANOSECONDS = 1_000_000_000
_STAGES = (("queue", "waited"), ("denoise", "denoised"), ("finish", "finished"))


@dataclass(slots=True)
class RequestTracer:
    """Where spans go.

    Args:
        provider: hands them on.
    """

    provider: TracerProvider

    def record_request(self, handle: RequestHandle, output: RequestOutput, now: float) -> None:
        """A job has ended, at so many seconds since the epoch."""
        tracer = self.provider.get_tracer("stillhouse", __version__)
        carrier = (
            {"traceparent": handle.generation_request.traceparent} if handle.generation_request.traceparent else {}
        )
        parent = TraceContextTextMapPropagator().extract(carrier)
        request = handle.request
        span = tracer.start_span(
            "stillhouse.picture",
            parent,
            start_time=int(handle.created * _NANOSECONDS),
            attributes={
                "stillhouse.request_id": handle.id,
                "stillhouse.tier": handle.job.tier.name,
                "stillhouse.drawn_as": handle.effective_tier,
                "stillhouse.pipeline": handle.job.batch_key.pipeline,
                "stillhouse.size": f"{request.width}x{request.height}",
                "stillhouse.steps": request.steps or 0,
                "stillhouse.outcome": output.finish_reason,
                "stillhouse.batch_peers": output.batch_peers,
            },
        )
        at = handle.created
        for name, field in _STAGES:
            seconds = getattr(output, field)
            stage = tracer.start_span(
                f"stillhouse.{name}", set_span_in_context(span), start_time=int(at * _NANOSECONDS)
            )
            at += seconds
            stage.end(int(at * _NANOSECONDS))
        if output.finish_reason == "failed":
            span.set_status(Status(StatusCode.ERROR, output.error_type))
        span.end(int(now * _NANOSECONDS))

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()


def make_tracer(processor: SpanProcessor | None = None) -> RequestTracer:
    """Spans to wherever the environment says, or to this processor."""
    provider = TracerProvider(resource=Resource.create({"service.name": "stillhouse"}))
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return RequestTracer(provider)
