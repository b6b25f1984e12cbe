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
from stillhouse.serve.request_handle import Ticket
from stillhouse.serve.worker.messages import Closed

_NANOSECONDS = 1_000_000_000
_STAGES = (("queue", "waited"), ("denoise", "denoised"), ("finish", "finished"))


@dataclass(slots=True)
class Tracing:
    """Where spans go.

    Args:
        provider: hands them on.
    """

    provider: TracerProvider

    def picture(self, ticket: Ticket, closed: Closed, now: float) -> None:
        """A job has ended, at so many seconds since the epoch."""
        tracer = self.provider.get_tracer("stillhouse", __version__)
        carrier = {"traceparent": ticket.order.trace} if ticket.order.trace else {}
        parent = TraceContextTextMapPropagator().extract(carrier)
        request = ticket.request
        span = tracer.start_span(
            "stillhouse.picture",
            parent,
            start_time=int(ticket.wall * _NANOSECONDS),
            attributes={
                "stillhouse.request_id": ticket.id,
                "stillhouse.tier": ticket.job.tier.name,
                "stillhouse.drawn_as": ticket.drawn_as,
                "stillhouse.pipeline": ticket.job.group.pipeline,
                "stillhouse.size": f"{request.width}x{request.height}",
                "stillhouse.steps": request.steps or 0,
                "stillhouse.outcome": closed.outcome,
                "stillhouse.batch_peers": closed.peers,
            },
        )
        at = ticket.wall
        for name, field in _STAGES:
            seconds = getattr(closed, field)
            stage = tracer.start_span(
                f"stillhouse.{name}", set_span_in_context(span), start_time=int(at * _NANOSECONDS)
            )
            at += seconds
            stage.end(int(at * _NANOSECONDS))
        if closed.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, closed.fault))
        span.end(int(now * _NANOSECONDS))

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()


def tracing(processor: SpanProcessor | None = None) -> Tracing:
    """Spans to wherever the environment says, or to this processor."""
    provider = TracerProvider(resource=Resource.create({"service.name": "stillhouse"}))
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
