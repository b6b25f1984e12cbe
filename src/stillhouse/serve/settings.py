"""Server settings, read from `stillhouse.toml` or set on the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.units import parse_duration, parse_size
from stillhouse.validation import read_toml

EMBEDDED, STUDENT = "shapes", "shapes-3"


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Settings of one tier. A tier is a model name of the APIs, with a pipeline, defaults, a latency target and limits.

    Rate limits count pixel-steps: pixels of an image times its network evaluations.

    Args:
        pipeline: name of a model that this package contains, or a pipeline directory.
        weight: scheduling weight, 0.001 to 1000. Images of a tier with a greater weight are given priority.
        slo: latency target as a multiple of the isolated latency (latency without other requests), at least 1.
        max_lateness: largest predicted latency of an accepted request, as a multiple of the latency target, at least 1.
            A request with a larger prediction is rejected. 1 accepts only requests that can meet their target.
        steps: default number of sampler steps; None uses the pipeline's default.
        guidance: default guidance scale; None uses the pipeline's default.
        sampler: default sampler; None uses the pipeline's default.
        max_steps: largest allowed number of steps.
        rate: pixel-steps per second that each API key may use on average; None is unlimited.
        burst: pixel-steps that each API key may use at once after a pause; None is one minute of `rate`.
        daily: pixel-steps that each API key may use per UTC day; None is unlimited.
        also: other tiers that API keys of this tier may use.
        degrade: tiers that take over a request which this tier would reject as too late, in order of preference. Their
            pipeline and defaults replace this tier's. The response names the tier used.
    """

    pipeline: str
    weight: float = 1.0
    slo: float = 3.0
    max_lateness: float = 5.0
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    max_steps: int = 150
    rate: float | None = None
    burst: float | None = None
    daily: float | None = None
    also: tuple[str, ...] = ()
    degrade: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("weight", self.weight, 1e-3, 1e3)
        check_number("slo", self.slo, 1, 1e6)
        check_number("max_lateness", self.max_lateness, 1, float("inf"))
        check_integer("max_steps", self.max_steps, 1, 1000)
        for name in ("rate", "burst", "daily"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, float("inf"))


def default_tiers() -> Mapping[str, TierSettings]:
    """Return the default tiers by name.

    "free" serves the distilled model that this package contains, "pro" its teacher. API keys of "pro" may also use
    "free".
    """
    return {
        "free": TierSettings(STUDENT),
        "pro": TierSettings(EMBEDDED, weight=2.0, also=("free",)),
    }


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All settings of a server.

    Args:
        tiers: settings of each tier by name. Clients request a tier by this name as `model`; the first is the default.
        host: address to listen on.
        port: HTTP port; 0 selects a free port.
        grpc_port: gRPC port; 0 selects a free port, -1 disables gRPC.
        data: directory of the database and the images of jobs.
        keys: whether requests require an API key.
        policy: scheduling policy (order in which images get their steps), a name in `policy.POLICIES`.
        max_queue: largest number of unfinished requests of a worker, running ones included.
        memory: memory that a worker process with its loaded pipelines may use, for example "8GiB". Above this limit,
            the least recently used pipeline is unloaded first.
        backend: backend of every network; None uses the backends of the pipeline's manifest.
        precision: compute precision of the denoiser; None uses the precision of the pipeline's manifest.
        threads: maximum number of threads of each network; None uses the value of the pipeline's manifest.
        devices: GPUs as in CUDA_VISIBLE_DEVICES, one worker each. Empty starts one worker that sees all devices.
        workers: number of worker processes that share the processor's cores equally; above 1 only without `devices`.
            Each loads all pipelines. Images take longer alone, and more small ones are served a second, because a small
            network does not occupy several cores.
        max_body: largest size of a request body, for example "32MiB".
        max_pixels: largest number of pixels of one image.
        max_images: largest number of images per request.
        on_disconnect: what happens to unfinished images of a client that disconnects: "cancel" cancels them, "finish"
            completes them and stores them as jobs.
        drain_timeout: time that accepted requests get to finish after SIGTERM, for example "30s".
        stall_timeout: time without messages after which a busy worker is restarted, for example "120s"; longer where
            one step of an image is predicted to take more than a quarter of it.
        open_timeout: time in which a worker must have opened and measured its pipelines, for example "30m"; it is
            restarted then, as one that sends no message while it opens for `stall_timeout`.
        keep: time for which finished jobs and their images are kept, for example "24h".
        keep_bytes: largest total size of kept images, for example "1GiB". The oldest jobs are deleted first.
        tracing: whether OpenTelemetry spans of requests are exported.
    """

    tiers: Mapping[str, TierSettings] = field(default_factory=default_tiers)
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    data: str = "stillhouse-data"
    keys: bool = False
    policy: str = "slack"
    max_queue: int = 256
    memory: str = "8GiB"
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    devices: tuple[str, ...] = ()
    workers: int = 1
    max_body: str = "32MiB"
    max_pixels: int = 2048 * 2048
    max_images: int = 10
    on_disconnect: Literal["cancel", "finish"] = "cancel"
    drain_timeout: str = "30s"
    stall_timeout: str = "120s"
    open_timeout: str = "30m"
    keep: str = "24h"
    keep_bytes: str = "1GiB"
    tracing: bool = False

    def __post_init__(self) -> None:
        if not self.tiers:
            fix = "add a section such as [tiers.free] to the settings"
            raise InvalidRequest("the settings define no tier", allowed="one tier or more", fix=fix)
        for name, tier in self.tiers.items():
            if not name.isidentifier():
                allowed = "letters, digits and _, with a letter at the beginning"
                raise InvalidRequest(f"the tier name {name!r} is not an identifier", allowed=allowed)
            for other in (*tier.also, *tier.degrade):
                check_choice("tier", other, self.tiers)
        if len(set(self.devices)) < len(self.devices):
            raise InvalidRequest(f"devices {', '.join(self.devices)} name a device twice", allowed="each device once")
        check_integer("workers", self.workers, 1, 64)
        if self.devices and self.workers > 1:
            raise InvalidRequest(
                f"workers is {self.workers}, and devices {', '.join(self.devices)} have one worker each",
                allowed="workers 1 with devices, or no devices",
            )
        check_choice("policy", self.policy, POLICIES)
        check_integer("max_queue", self.max_queue, 1, 100_000)
        check_integer("max_pixels", self.max_pixels, 1, 8192 * 8192)
        check_integer("max_images", self.max_images, 1, 100)
        check_integer("port", self.port, 0, 65535)
        check_integer("grpc_port", self.grpc_port, -1, 65535)
        for size in (self.memory, self.max_body, self.keep_bytes):
            parse_size(size)
        for time in (self.drain_timeout, self.stall_timeout, self.open_timeout, self.keep):
            parse_duration(time)

    @property
    def default_tier(self) -> str:
        """Return the name of the first tier. Anonymous clients and new API keys get this tier."""
        return next(iter(self.tiers))


def read_server_settings(path: Path) -> ServerSettings:
    """Return the server settings in a TOML file. Relative paths of pipelines and `data` start at the file's directory.

    Raises:
        InvalidRequest: the file is missing or not TOML, or a setting is unknown or out of range.
    """
    return _resolve_paths(
        read_toml(ServerSettings, path, "leave --config out to serve the embedded model"), path.parent
    )


def replace_pipelines(settings: ServerSettings, pipelines: Mapping[str, str]) -> ServerSettings:
    """Return a copy of server settings whose tiers are exactly the keys of `pipelines`.

    Each value of `pipelines` is the name of a model that this package contains, or a directory. Tiers that remain keep
    their other values, except that `also` and `degrade` lose the names of removed tiers. New tiers get default values.
    """
    tiers = {
        name: replace(settings.tiers[name], pipeline=pipeline) if name in settings.tiers else TierSettings(pipeline)
        for name, pipeline in pipelines.items()
    }
    restricted = {
        name: replace(
            tier,
            also=tuple(other for other in tier.also if other in tiers),
            degrade=tuple(other for other in tier.degrade if other in tiers),
        )
        for name, tier in tiers.items()
    }
    return replace(settings, tiers=restricted)


def _resolve_paths(settings: ServerSettings, base: Path) -> ServerSettings:
    def resolve(name: str) -> str:
        path = base / name
        return str(path) if path.is_dir() else name

    tiers = {name: replace(tier, pipeline=resolve(tier.pipeline)) for name, tier in settings.tiers.items()}
    return replace(settings, tiers=tiers, data=str(base / settings.data))
