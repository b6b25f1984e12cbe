"""The server as a process: its sockets, its signals, its end."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from litestar import Litestar

from stillhouse.errors import InvalidRequest, PipelineError, StillhouseError
from stillhouse.serve.api import studio
from stillhouse.serve.api.app import make_app
from stillhouse.serve.api.grpc.server import close_grpc, open_grpc
from stillhouse.serve.api.kserve import routes
from stillhouse.serve.service import Service, make_service
from stillhouse.serve.settings import ServerSettings
from stillhouse.units import parse_duration

log = logging.getLogger(__name__)

BACKLOG = 1024
_SHUTDOWN_SECONDS = 3.0
"""Seconds that open connections have once everything is drawn."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens."""

    http: str
    grpc: str | None


class _UvicornServer(uvicorn.Server):
    """uvicorn, whose signals are taken by `run`: it would close its doors before the pictures are done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(
    settings: ServerSettings,
    cache: Path | None = None,
    on_started: Callable[[Addresses], None] = lambda addresses: None,
) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing more, end what was begun, and return. A second one ends at once.

    Args:
        settings: what the server is told.
        cache: directory of compiled networks.
        started: called when the doors are open; workers may still be opening their pipelines.

    Raises:
        InvalidRequest: an address or a data directory that cannot be used.
        UnknownModel, PipelineError: a pipeline that cannot be served.
    """
    with (
        _listening_socket(settings.host, settings.port) as listening,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, cache, listening, on_started))


async def _serve(
    settings: ServerSettings, cache: Path | None, listening: socket.socket, on_started: Callable[[Addresses], None]
) -> None:
    failures: list[StillhouseError] = []
    service = make_service(settings, cache, lambda error: _fail(failures, PipelineError(error), server))
    app = make_app(service, [*routes.HANDLERS, *studio.HANDLERS])
    server = _UvicornServer(_config(app))
    leaving = asyncio.create_task(_drain_on_signal(service, server))
    try:
        address = f"http://{_url_host(settings.host)}:{listening.getsockname()[1]}"
        app.on_startup.append(
            partial(_start_grpc, app, service, address, on_started, partial(_fail, failures, server=server))
        )
        app.on_shutdown.insert(0, partial(_stop_grpc, app))
        await server.serve([listening])
    finally:
        leaving.cancel()
    if failures:
        raise failures[0]
    if not server.started:
        raise StillhouseError("the server could not be started", fix="its log tells why")


async def _start_grpc(
    app: Litestar,
    service: Service,
    address: str,
    on_started: Callable[[Addresses], None],
    fail: Callable[[StillhouseError], None],
) -> None:
    """The second door, where there is to be one."""
    app.state.grpc = None
    settings, second = service.settings, None
    if settings.grpc_port is not None:
        try:
            app.state.grpc, port = await open_grpc(service, settings.host, settings.grpc_port)
        except StillhouseError as error:
            fail(error)
            return
        second = f"{_url_host(settings.host)}:{port}"
    on_started(Addresses(address, second))


async def _stop_grpc(app: Litestar) -> None:
    if app.state.grpc is not None:
        await close_grpc(app.state.grpc)


async def _drain_on_signal(service: Service, server: _UvicornServer) -> None:
    """Wait for a signal, drain, and let the server leave; the second signal does not wait."""
    asked = asyncio.Queue[int]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.put_nowait, number)
    await asked.get()
    log.info("draining", extra={"pictures": service.dispatcher.running + service.dispatcher.waiting})
    draining = asyncio.create_task(service.dispatcher.drain(parse_duration(service.settings.drain)))
    again = asyncio.create_task(asked.get())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        draining.cancel()
        await service.dispatcher.drain(0.0)
        server.force_exit = True
    again.cancel()
    server.should_exit = True


def _fail(failures: list[StillhouseError], error: StillhouseError, server: _UvicornServer) -> None:
    failures.append(error)
    server.should_exit = True


def _config(app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_SHUTDOWN_SECONDS),
        timeout_keep_alive=30,
        backlog=BACKLOG,
    )


@contextlib.contextmanager
def _listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, before anything else is opened: what is wrong with an address is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, UnicodeError) as error:  # the latter where a name breaks the rules for names of hosts
            fix = "choose another --port" if port and isinstance(error, OSError) else "choose another --host"
            told = getattr(error, "strerror", None) or error
            raise InvalidRequest(f"{host}:{port} cannot be listened at: {told}", fix=fix) from error
        listening.set_inheritable(False)
        yield listening


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
