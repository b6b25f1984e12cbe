"""The server process: sockets, signals and shutdown."""

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
"""Seconds that open connections get to close after all requests have finished."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses that a server listens on.

    Args:
        http: URL of the HTTP server.
        grpc: host and port of the gRPC server; None if gRPC is disabled.
    """

    http: str
    grpc: str | None


class _UvicornServer(uvicorn.Server):
    """uvicorn server without uvicorn's signal handlers, which stop the server while requests are unfinished.

    `_drain_on_signal` handles the signals instead: it keeps the sockets open until the accepted requests have ended.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(
    settings: ServerSettings,
    cache: Path | None = None,
    on_started: Callable[[Addresses], None] = lambda addresses: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish accepted requests and return. A second signal stops immediately.

    Args:
        cache: directory of compiled networks; None disables the cache.
        on_started: called with the server's addresses when the sockets are open. Workers may still load pipelines then.

    Raises:
        InvalidRequest: an address or data directory cannot be used.
        UnknownModel, PipelineError: a pipeline cannot be served.
    """
    with (
        _listening_socket(settings.host, settings.port) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, cache, listener, on_started))


async def _serve(
    settings: ServerSettings, cache: Path | None, listener: socket.socket, on_started: Callable[[Addresses], None]
) -> None:
    failures: list[StillhouseError] = []
    service = make_service(settings, cache, lambda error: _fail(failures, PipelineError(error), server))
    app = make_app(service, [*routes.HANDLERS, *studio.HANDLERS])
    server = _UvicornServer(_config(app))
    leaving = asyncio.create_task(_drain_on_signal(service, server))
    try:
        address = f"http://{_url_host(settings.host)}:{listener.getsockname()[1]}"
        start_grpc = partial(_start_grpc, app, service, address, on_started, partial(_fail, failures, server=server))
        app.on_startup.append(start_grpc)
        app.on_shutdown.insert(0, partial(_stop_grpc, app))
        await server.serve([listener])
    finally:
        leaving.cancel()
    if failures:
        raise failures[0]
    if not server.started:
        raise StillhouseError("the server could not be started", fix="see the server's log for the reason")


async def _start_grpc(
    app: Litestar,
    service: Service,
    address: str,
    on_started: Callable[[Addresses], None],
    fail: Callable[[StillhouseError], None],
) -> None:
    """Start the gRPC server if the settings enable it, then call `on_started` with the addresses of both servers.

    If the gRPC server cannot start, `fail` is called with the error instead.

    Args:
        app: HTTP application; the gRPC server is stored as `app.state.grpc`.
        service: service behind the API.
        address: URL of the HTTP server.
        on_started: called with the addresses of both servers.
        fail: called with the error.
    """
    app.state.grpc = None
    settings, grpc_address = service.settings, None
    if settings.grpc_port >= 0:
        try:
            app.state.grpc, port = await open_grpc(service, settings.host, settings.grpc_port)
        except StillhouseError as error:
            fail(error)
            return
        grpc_address = f"{_url_host(settings.host)}:{port}"
    on_started(Addresses(address, grpc_address))


async def _stop_grpc(app: Litestar) -> None:
    if app.state.grpc is not None:
        await close_grpc(app.state.grpc)


async def _drain_on_signal(service: Service, server: _UvicornServer) -> None:
    """Wait for SIGTERM or SIGINT, let accepted requests finish, and stop the server.

    A second signal stops the server at once.
    """
    signals = asyncio.Queue[int]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    await signals.get()
    log.info("draining", extra={"requests": service.dispatcher.running + service.dispatcher.waiting})
    drain_task = asyncio.create_task(service.dispatcher.drain(parse_duration(service.settings.drain_timeout)))
    second_signal = asyncio.create_task(signals.get())
    await asyncio.wait({drain_task, second_signal}, return_when=asyncio.FIRST_COMPLETED)
    if second_signal.done():
        drain_task.cancel()
        await service.dispatcher.drain(0.0)
        server.force_exit = True
    second_signal.cancel()
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
    """Yield a TCP socket that is bound to an address, and close it at the end of the `with` statement.

    The socket is bound before pipelines are loaded, so that a wrong address is reported at once.

    Raises:
        InvalidRequest: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError is caught, because some invalid host names raise it
            fix = "choose another --port" if port and isinstance(error, OSError) else "choose another --host"
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequest(f"{host}:{port} cannot be used as a listening address: {reason}", fix=fix) from error
        listener.set_inheritable(False)
        yield listener


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
