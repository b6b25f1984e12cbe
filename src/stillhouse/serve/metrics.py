"""What a server counts, under names that routers and autoscalers know; `/metrics` shows it."""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServerState(Protocol):
    """What is asked of a server whenever somebody looks."""

    @property
    def running(self) -> int:
        """Pictures that have begun and have not ended."""

    @property
    def waiting(self) -> int:
        """Pictures that have not begun."""

    @property
    def pending_seconds(self) -> float:
        """Seconds that everything admitted will still take, as predicted."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""


class Metrics:
    """All counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._in_time_counts: dict[str, tuple[int, int]] = {}

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"stillhouse_{name}", what, labels, registry=self.registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"stillhouse_{name}", what, labels, buckets=buckets, registry=self.registry)

        self.queue = histogram("queue_seconds", "Seconds before a picture's first evaluation.", _QUEUE_BUCKETS, "tier")
        self.denoise = histogram(
            "denoise_seconds", "Seconds from the first evaluation to the last.", _QUEUE_BUCKETS, "tier"
        )
        self.step = histogram("step_seconds", "Seconds of one evaluation of a batch.", _STEP_BUCKETS, "batch", "shape")
        self.rows = histogram("batch_rows", "Rows of a batch.", (1, 2, 4, 8, 16, 32), "shape")
        self.images = counter("images", "Pictures that were drawn.", "tier", "pipeline")
        kept = "Of these, those within their tier's promise; patient ones are left out."
        self.in_time = counter("images_in_time", kept, "tier")
        told = "Of the pictures that were drawn and somebody waited for, those within their tier's promise."
        self.goodput = Gauge("stillhouse_goodput_ratio", told, ["tier"], registry=self.registry)
        self.cancelled = counter("cancelled", "Jobs that were cancelled.", "reason")
        self.rejected = counter("rejected", "Requests that were not taken.", "reason", "tier")
        self.failed = counter("failed", "Jobs that failed.", "fault")
        self.degraded = counter("degraded", "Pictures drawn as another tier draws.", "tier", "drawn_as")
        self.deaths = counter("worker_deaths", "Worker processes that died.")
        self.pixel_steps = counter("pixel_steps", "Pixels times evaluations that were asked for.", "tier")

    def watch_state(self, state: ServerState) -> None:
        """Show this server's state, as it is whenever somebody looks."""
        gauges = {
            "requests_running": ("Pictures that have begun.", lambda: state.running),
            "requests_waiting": ("Pictures that have not begun.", lambda: state.waiting),
            "work_pending_seconds": ("Seconds that all admitted work will take.", lambda: state.pending_seconds),
            "ready": ("1 where requests are taken.", lambda: float(state.is_ready)),
        }
        for name, (what, told) in gauges.items():
            Gauge(f"stillhouse_{name}", what, registry=self.registry).set_function(told)

    def record_finished(self, tier: str, pipeline: str, in_time: bool | None) -> None:
        """A picture was drawn, within its tier's promise or not; None, nobody waited for it."""
        self.images.labels(tier, pipeline).inc()
        if in_time is None:
            return
        self.in_time.labels(tier).inc(in_time)
        every, kept = self._in_time_counts.get(tier, (0, 0))
        self._in_time_counts[tier] = every, kept = every + 1, kept + in_time
        self.goodput.labels(tier).set(kept / every)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
