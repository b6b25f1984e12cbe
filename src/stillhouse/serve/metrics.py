"""Prometheus metrics of a server, exposed at `/metrics`."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServerState(Protocol):
    """Current state of the server, which gauges read whenever the metrics are fetched."""

    @property
    def running(self) -> int:
        """Number of unfinished requests whose denoising has started."""

    @property
    def waiting(self) -> int:
        """Number of accepted requests whose denoising has not started."""

    @property
    def pending_seconds(self) -> float:
        """Predicted seconds of work for all accepted requests."""

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""


class Metrics:
    """Prometheus counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._in_time_counts: dict[str, tuple[int, int]] = {}

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"stillhouse_{name}", description, labels, registry=self.registry)

        def histogram(name: str, description: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"stillhouse_{name}", description, labels, buckets=buckets, registry=self.registry)

        self.queue = histogram("queue_seconds", "Seconds from arrival to the first evaluation.", _QUEUE_BUCKETS, "tier")
        self.denoise = histogram(
            "denoise_seconds", "Seconds from the first evaluation to the last.", _QUEUE_BUCKETS, "tier"
        )
        self.step = histogram("step_seconds", "Seconds of one evaluation of a batch.", _STEP_BUCKETS, "batch", "shape")
        self.rows = histogram("batch_rows", "Rows of a batch.", (1, 2, 4, 8, 16, 32), "shape")
        self.images = counter("images", "Generated images.", "tier", "pipeline")
        self.in_time = counter(
            "images_in_time", "Images finished within their tier's SLO, background jobs excluded.", "tier"
        )
        goodput = "Share of interactive images finished within their tier's SLO."
        self.goodput = Gauge("stillhouse_goodput_ratio", goodput, ["tier"], registry=self.registry)
        self.cancelled = counter("cancelled", "Cancelled requests.", "reason")
        self.rejected = counter("rejected", "Rejected requests.", "reason", "tier")
        self.failed = counter("failed", "Failed requests.", "error_type")
        self.degraded = counter(
            "degraded", "Images generated with the settings of another tier.", "tier", "effective_tier"
        )
        self.deaths = counter("worker_deaths", "Worker processes that died.")
        self.pixel_steps = counter("pixel_steps", "Requested pixels times network evaluations.", "tier")

    def watch_state(self, state: ServerState) -> None:
        """Register gauges that read `state` whenever the metrics are fetched."""
        gauges = {
            "requests_running": ("Requests running.", lambda: state.running),
            "requests_waiting": ("Requests waiting.", lambda: state.waiting),
            "work_pending_seconds": ("Predicted seconds of admitted work.", lambda: state.pending_seconds),
            "ready": ("1 if the server accepts requests.", lambda: float(state.is_ready)),
        }
        for name, (description, read) in gauges.items():
            Gauge(f"stillhouse_{name}", description, registry=self.registry).set_function(read)

    def record_finished(self, tier: str, pipeline: str, in_time: bool | None) -> None:
        """Count a generated image, and update the goodput: the share of images that met their latency target.

        Args:
            tier: name of the requested tier (model).
            pipeline: name of the pipeline.
            in_time: whether the latency target of the tier was met; None for background requests, which do not count in
                goodput.
        """
        self.images.labels(tier, pipeline).inc()
        if in_time is None:
            return
        self.in_time.labels(tier).inc(in_time)
        total, count = self._in_time_counts.get(tier, (0, 0))
        self._in_time_counts[tier] = total, count = total + 1, count + in_time
        self.goodput.labels(tier).set(count / total)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
