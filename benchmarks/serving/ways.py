"""Every way to serve the same model: who is compared with whom."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from benchmarks.serving.launch import Launch, Running, free_port, running
from benchmarks.serving.triton.environment import ROOT
from benchmarks.serving.triton.launch import launch as launch_triton
from stillhouse.serve.loadgen.protocols import Name
from stillhouse.serve.loadgen.request_class import Kind

STEPS = {"free": 3, "pro": 35}
SHARES = {"free": 0.8, "pro": 0.2}
_LOGS = ROOT / "build" / "serving"


@dataclass(frozen=True, slots=True)
class Way:
    """A server that can be started.

    Args:
        told: what it is, for people.
        launch: how, at a port, with a directory of its own.
        ready: path that answers with 200 when it is ready.
        protocol: that it speaks.
        models: what it calls each tier.
    """

    told: str
    launch: Callable[[int, Path], Launch]
    ready: str
    protocol: Name = "openai"
    models: Mapping[str, str] = field(default_factory=lambda: {name: name for name in STEPS})

    def kinds(self, alone: Mapping[str, float] | None = None) -> tuple[Kind, ...]:
        """What is asked of it: the same of every server."""
        return tuple(
            Kind(name, SHARES[name], self.models[name], {"steps": STEPS[name]}, alone[name] if alone else None)
            for name in STEPS
        )


@contextmanager
def serving(name: str) -> Iterator[Running]:
    """The server of that name, ready.

    Raises:
        RuntimeMissing: it cannot be had here.
        StillhouseError: it does not start.
    """
    way, port = WAYS[name], free_port()
    _LOGS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{name}-", dir=_LOGS) as folder:
        workspace = Path(folder)
        launch = way.launch(port, workspace)
        with running(launch, port, way.ready, _LOGS / f"{name}.log") as server:
            yield server


def ours(policy: str, lateness: float | None = float("inf")) -> Callable[[int, Path], Launch]:
    """Our own server with two tiers of the embedded model. With an infinite lateness nothing is refused."""

    def launch(port: int, workspace: Path) -> Launch:
        late = "" if lateness is None else f"lateness = {lateness}\n"
        tiers = [f'[tiers.{name}]\npipeline = "shapes"\nsteps = {steps}\n{late}' for name, steps in STEPS.items()]
        # The others take whatever comes, so here nothing is refused for a full queue either.
        top = f'policy = "{policy}"\ndata = "data"\n' + ("queue = 100000\n" if lateness == float("inf") else "")
        config = workspace / "stillhouse.toml"
        config.write_text("\n".join([top, *tiers]))
        options = ["--config", str(config), "--port", str(port), "--grpc-port", "-1", "--log", "json"]
        return Launch([sys.executable, "-m", "stillhouse", "serve", *options], _environment())

    return launch


def _rival(way: str) -> Callable[[int, Path], Launch]:
    command = [sys.executable, "-m", "benchmarks.serving.rival", way]
    return lambda port, workspace: Launch([*command, str(port)], _environment())


def _environment() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


_ONE = MappingProxyType({"free": "shapes", "pro": "shapes"})
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "fastapi-async": Way("FastAPI, blocking in `async def`", _rival("async"), "/health"),
        "fastapi-def": Way("FastAPI, `def` in its thread pool", _rival("def"), "/health"),
        "triton": Way(
            "Triton, one model, dynamic batching",
            lambda port, workspace: launch_triton(["shapes"], port, workspace),
            "/v2/health/ready",
            "kserve",
            _ONE,
        ),
        "triton-tiers": Way(
            "Triton, a model for each tier",
            lambda port, workspace: launch_triton(["free", "pro"], port, workspace),
            "/v2/health/ready",
            "kserve",
        ),
        "fifo": Way("Stillhouse, first come first served", ours("fifo"), "/health/ready"),
        "slack": Way("Stillhouse", ours("slack"), "/health/ready"),
        "refusing": Way("Stillhouse, which refuses what would be late", ours("slack", None), "/health/ready"),
    }
)
"""Every way by name."""
EVERYWHERE = tuple(name for name in WAYS if name != "refusing")
"""Those that are loaded with every trace."""
