"""OpenTelemetry spans of requests. Requires the extra `stillhouse[telemetry]`.

Each request has one span with a child span per stage (queue, denoise, decode). The client's `traceparent` is the
parent. The exporter is configured by the standard environment variables, for example OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stillhouse import __version__
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.request_handle import RequestHandle

_NANOSECONDS = 1_000_000_000
_STAGES = (("queue", "queue_seconds"), ("denoise", "denoise_seconds"), ("decode", "decode_seconds"))


@dataclass(slots=True)
class RequestTracer:
    """Exporter of request spans.

    Args:
        provider: OpenTelemetry provider with a span processor.
    """

    provider: TracerProvider

    def record_request(self, handle: RequestHandle, output: RequestOutput, now: float) -> None:
        """Export the spans of a finished request.

        Args:
            handle: the request.
            output: its result.
            now: time of completion, seconds since the epoch.
        """
        tracer = self.provider.get_tracer("stillhouse", __version__)
        carrier = (
            {"traceparent": handle.generation_request.traceparent} if handle.generation_request.traceparent else {}
        )
        parent = TraceContextTextMapPropagator().extract(carrier)
        request = handle.request
        span = tracer.start_span(
            "stillhouse.request",
            parent,
            start_time=int(handle.created * _NANOSECONDS),
            attributes={
                "stillhouse.request_id": handle.id,
                "stillhouse.tier": handle.job.tier.name,
                "stillhouse.effective_tier": handle.effective_tier,
                "stillhouse.pipeline": handle.job.batch_key.pipeline,
                "stillhouse.size": f"{request.width}x{request.height}",
                "stillhouse.steps": request.steps or 0,
                "stillhouse.finish_reason": output.finish_reason,
                "stillhouse.batch_peers": output.batch_peers,
            },
        )
        start = handle.created
        for name, field in _STAGES:
            seconds = getattr(output, field)
            stage = tracer.start_span(
                f"stillhouse.{name}", set_span_in_context(span), start_time=int(start * _NANOSECONDS)
            )
            start += seconds
            stage.end(int(start * _NANOSECONDS))
        if output.finish_reason == "failed":
            span.set_status(Status(StatusCode.ERROR, output.error_type))
        span.end(int(now * _NANOSECONDS))

    def close(self) -> None:
        """Export the remaining spans and shut down."""
        self.provider.shutdown()


def make_tracer(processor: SpanProcessor | None = None) -> RequestTracer:
    """Return a tracer that exports to `processor`, or over OTLP as the environment variables configure."""
    provider = TracerProvider(resource=Resource.create({"service.name": "stillhouse"}))
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return RequestTracer(provider)
