"""OpenTelemetry spans of requests. Requires the extra `stillhouse[telemetry]`.

Each request has one span with three child spans: queue, denoise and decode. The client's `traceparent` header names the
parent of the request's span. OpenTelemetry's environment variables, for example OTEL_EXPORTER_OTLP_ENDPOINT, configure
the export.
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
        provider: OpenTelemetry provider, whose span processor exports the spans.
    """

    provider: TracerProvider

    def record_request(self, handle: RequestHandle, output: RequestOutput, now: float) -> None:
        """Record the spans of a request that has ended, for export.

        Args:
            handle: the request.
            output: result of the request.
            now: time at which the request ended, in seconds since the epoch.
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
        """Export the recorded spans that are not yet exported, and shut down the provider."""
        self.provider.shutdown()


def make_tracer(processor: SpanProcessor | None = None) -> RequestTracer:
    """Return a tracer that passes spans to `processor`.

    Where `processor` is None, the spans are exported over OTLP, as OpenTelemetry's environment variables configure.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "stillhouse"}))
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return RequestTracer(provider)
