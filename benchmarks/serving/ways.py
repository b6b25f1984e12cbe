"""All compared servers."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from benchmarks.serving.launch import RunningServer, ServerCommand, free_port, run_server
from benchmarks.serving.triton.environment import ROOT
from benchmarks.serving.triton.launch import triton_command as launch_triton
from stillhouse.serve.loadgen.protocols import ProtocolName
from stillhouse.serve.loadgen.request_class import RequestClass

STEPS = {"free": 3, "pro": 35}
SHARES = {"free": 0.8, "pro": 0.2}
_LOGS = ROOT / "build" / "serving"


@dataclass(frozen=True, slots=True)
class ServerVariant:
    """A server of the comparison.

    Args:
        description: description for tables.
        launch: returns the command for a port and a working directory.
        ready: path that returns 200 when the server is ready.
        protocol: protocol of the server.
        models: model name of each tier.
    """

    description: str
    launch: Callable[[int, Path], ServerCommand]
    ready: str
    protocol: ProtocolName = "openai"
    models: Mapping[str, str] = field(default_factory=lambda: {name: name for name in STEPS})

    def request_classes(self, isolated_seconds: Mapping[str, float] | None = None) -> tuple[RequestClass, ...]:
        """Return the request classes, equal for every server."""
        return tuple(
            RequestClass(
                name,
                SHARES[name],
                self.models[name],
                {"steps": STEPS[name]},
                isolated_seconds[name] if isolated_seconds else None,
            )
            for name in STEPS
        )


@contextmanager
def start_server(name: str) -> Iterator[RunningServer]:
    """Start a server by name and yield it when it is ready.

    Raises:
        RuntimeMissing: the server is not available on this machine.
        StillhouseError: the server does not start.
    """
    variant, port = SERVERS[name], free_port()
    _LOGS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{name}-", dir=_LOGS) as folder:
        workspace = Path(folder)
        launch = variant.launch(port, workspace)
        with run_server(launch, port, variant.ready, _LOGS / f"{name}.log") as server:
            yield server


def stillhouse_command(policy: str, max_lateness: float | None = float("inf")) -> Callable[[int, Path], ServerCommand]:
    """Return the command of our server with two tiers. With an infinite `max_lateness` no request is rejected."""

    def launch(port: int, workspace: Path) -> ServerCommand:
        late = "" if max_lateness is None else f"max_lateness = {max_lateness}\n"
        tiers = [f'[tiers.{name}]\npipeline = "shapes"\nsteps = {steps}\n{late}' for name, steps in STEPS.items()]
        # The other servers reject nothing, so the queue must not be full here either.
        top = f'policy = "{policy}"\ndata = "data"\n' + ("max_queue = 100000\n" if max_lateness == float("inf") else "")
        return serve_command("\n".join([top, *tiers]), port, workspace)

    return launch


def serve_command(settings: str, port: int, workspace: Path, tree: Path = ROOT) -> ServerCommand:
    """Write a settings file, and return the command that serves by it on a port.

    Args:
        settings: content of the file, TOML.
        port: HTTP port.
        workspace: directory of the file.
        tree: root of the tree of this project whose server is started.
    """
    config = workspace / "stillhouse.toml"
    config.write_text(settings)
    options = ["--config", str(config), "--port", str(port), "--grpc-port", "-1", "--log", "json"]
    return ServerCommand([sys.executable, "-m", "stillhouse", "serve", *options], _environment(tree))


def _fastapi_command(variant: str) -> Callable[[int, Path], ServerCommand]:
    command = [sys.executable, "-m", "benchmarks.serving.rival", variant]
    return lambda port, workspace: ServerCommand([*command, str(port)], _environment())


def _environment(tree: Path = ROOT) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tree / 'src'}:{tree}"}


_ONE = MappingProxyType({"free": "shapes", "pro": "shapes"})
SERVERS: Mapping[str, ServerVariant] = MappingProxyType(
    {
        "fastapi-async": ServerVariant("FastAPI, blocking in `async def`", _fastapi_command("async"), "/health"),
        "fastapi-def": ServerVariant("FastAPI, `def` in its thread pool", _fastapi_command("def"), "/health"),
        "triton": ServerVariant(
            "Triton, one model, dynamic batching",
            lambda port, workspace: launch_triton(["shapes"], port, workspace),
            "/v2/health/ready",
            "kserve",
            _ONE,
        ),
        "triton-tiers": ServerVariant(
            "Triton, a model for each tier",
            lambda port, workspace: launch_triton(["free", "pro"], port, workspace),
            "/v2/health/ready",
            "kserve",
        ),
        "fcfs": ServerVariant("Stillhouse, first come first served", stillhouse_command("fcfs"), "/health/ready"),
        "slack": ServerVariant("Stillhouse", stillhouse_command("slack"), "/health/ready"),
        "refusing": ServerVariant(
            "Stillhouse, which refuses what would be late", stillhouse_command("slack", None), "/health/ready"
        ),
    }
)
"""All servers by name."""
ALL_TRACES_SERVERS = tuple(name for name in SERVERS if name != "refusing")
"""Servers that run every trace."""
