"""What a server is told before it starts: `stillhouse.toml`, or the command line alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.errors import InvalidRequest
from stillhouse.json_decode import read_toml
from stillhouse.serve.engine.admission import AdmissionLimits
from stillhouse.serve.engine.job import Tier
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.units import parse_duration, parse_size

ADMISSION_MARGIN = 0.5
"""See `Limits`."""
EMBEDDED, STUDENT = "shapes", "shapes-3"


@dataclass(frozen=True, slots=True)
class TierSettings:
    """A class of users: which pipeline draws for them, how, and what they are promised.

    Args:
        pipeline: an embedded model's name, or a pipeline directory.
        weight: above 0, see `job.Tier`.
        slo: above 1; times the seconds that its picture takes alone, within which a job should end.
        lateness: times the promised seconds; a picture that would end later as predicted is refused at once.
        steps, guidance, sampler: where a request does not say; None, as the pipeline's manifest says.
        most_steps: that a request may ask for.
        rate, burst: pixel-steps that each key may ask for in a second, and at once; None, as many as it likes.
        daily: pixel-steps of each key in a day.
        also: other tiers that its keys may ask for.
        degrade: tiers whose way of drawing may be used where its own would come too late, best first. The answer says
            so.
    """

    pipeline: str
    weight: float = 1.0
    slo: float = 3.0
    lateness: float = 5.0
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
        check_number("lateness", self.lateness, 1, float("inf"))
        check_integer("most_steps", self.max_steps, 1, 1000)
        for name in ("rate", "burst", "daily"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, float("inf"))

    def make_tier(self, name: str) -> Tier:
        """What the engine knows of it."""
        return Tier(name, self.weight, self.slo)


def default_tiers() -> Mapping[str, TierSettings]:
    """The tiers of a server that is told nothing: the embedded model, and its student of few steps for everybody."""
    return {
        "free": TierSettings(STUDENT),
        "pro": TierSettings(EMBEDDED, weight=2.0, also=("free",)),
    }


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything that a server is told.

    Args:
        tiers: by name, which is also the name of the model that clients ask for.
        host, port, grpc_port: where it listens; port 0 takes any that is free, grpc_port None opens no second door.
        data: the directory of keys, jobs and their pictures.
        keys: whether a key is needed.
        policy: a name out of `policy.POLICIES`.
        queue: at most so many pictures wait or are being drawn.
        memory: for all open pipelines together, as "8GiB"; the one that was not used for longest is closed first.
        backend, precision, threads: as in `stillhouse.load`, for every pipeline.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them: a worker for each, which sees no other. None named, one
            worker, which sees whatever there is.
        body: bytes of a request, as "32MiB".
        pixels: of one picture.
        count: pictures of one request.
        on_disconnect: what becomes of a picture whose client has gone.
        drain: seconds that begun pictures have to end after SIGTERM.
        stall: seconds without a sign of life after which a worker that has work is ended and started again.
        keep, kept: how long jobs and their pictures are kept, as "24h", and how many bytes of them, as "1GiB".
        tracing: whether spans are sent to OpenTelemetry, see `tracing`.
    """

    tiers: Mapping[str, TierSettings] = field(default_factory=default_tiers)
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    data: str = "stillhouse-data"
    keys: bool = False
    policy: str = "slack"
    queue: int = 256
    memory: str = "8GiB"
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    devices: tuple[str, ...] = ()
    body: str = "32MiB"
    pixels: int = 2048 * 2048
    count: int = 10
    on_disconnect: Literal["cancel", "finish"] = "cancel"
    drain: str = "30s"
    stall: str = "120s"
    keep: str = "24h"
    keep_bytes: str = "1GiB"
    tracing: bool = False

    def __post_init__(self) -> None:
        if not self.tiers:
            raise InvalidRequest("a server without tiers", allowed="one tier or more", fix="try [tiers.free]")
        for name, tier in self.tiers.items():
            if not name.isidentifier():
                raise InvalidRequest(f"a tier named {name!r}", allowed="letters, digits and _, a letter first")
            for other in (*tier.also, *tier.degrade):
                check_choice("tier", other, self.tiers)
        if len(set(self.devices)) < len(self.devices):
            raise InvalidRequest(f"devices {', '.join(self.devices)}", allowed="each once")
        check_choice("policy", self.policy, POLICIES)
        check_integer("queue", self.queue, 1, 100_000)
        check_integer("pixels", self.pixels, 1, 8192 * 8192)
        check_integer("count", self.count, 1, 100)
        for port in (self.port, self.grpc_port or 0):
            check_integer("port", port, 0, 65535)
        for size in (self.memory, self.body, self.keep_bytes):
            parse_size(size)
        for time in (self.drain, self.stall, self.keep):
            parse_duration(time)

    @property
    def default_tier(self) -> str:
        """The tier of whoever has no key."""
        return next(iter(self.tiers))

    def admission_limits(self, tier: str) -> AdmissionLimits:
        """How much may wait, as far as this tier is concerned."""
        return AdmissionLimits(self.queue, self.tiers[tier].lateness, ADMISSION_MARGIN)


def read_server_settings(path: Path) -> ServerSettings:
    """Settings out of a TOML file.

    Paths of pipelines and of `data` are relative to the file's directory.

    Raises:
        InvalidRequest: no such file, no TOML, or a setting that does not exist or is out of its range.
    """
    return _resolve_paths(
        read_toml(ServerSettings, path, "leave --config out to serve the embedded model"), path.parent
    )


def replace_pipelines(settings: ServerSettings, pipelines: Mapping[str, str]) -> ServerSettings:
    """The settings with these pipelines for these tiers; the tiers of the file that are not among them are left out.

    A tier that the file does not know gets every default.
    """
    tiers = {
        name: replace(settings.tiers[name], pipeline=pipeline) if name in settings.tiers else TierSettings(pipeline)
        for name, pipeline in pipelines.items()
    }
    kept = {
        name: replace(
            tier,
            also=tuple(other for other in tier.also if other in tiers),
            degrade=tuple(other for other in tier.degrade if other in tiers),
        )
        for name, tier in tiers.items()
    }
    return replace(settings, tiers=kept)


def _resolve_paths(settings: ServerSettings, base: Path) -> ServerSettings:
    def placed(name: str) -> str:
        inside = base / name
        return str(inside) if inside.is_dir() else name

    tiers = {name: replace(tier, pipeline=placed(tier.pipeline)) for name, tier in settings.tiers.items()}
    return replace(settings, tiers=tiers, data=str(base / settings.data))
