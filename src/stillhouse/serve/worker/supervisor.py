"""Supervision of a worker process: starts it, exchanges messages with it, and restarts it when it has died.

The server's event loop never waits: one thread receives the worker's events, another sends its commands.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

import msgspec

from stillhouse.serve.worker.messages import Command, Event, WorkerConfig
from stillhouse.workers.channel import Transport, TransportClosed, encode_message
from stillhouse.workers.process import Backoff, WorkerProcess

log = logging.getLogger(__name__)

MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.25, 30.0
"""Delay in seconds before the second restart of a worker that dies before it is ready, and limit of later delays.

The first restart has no delay; see `Backoff`.
"""


class WorkerSupervisor(Protocol):
    """The operations with which the server's `WorkerHandle` controls a worker."""

    config: WorkerConfig

    def start(self) -> None:
        """Start the worker."""

    def send(self, command: Command) -> None:
        """Send a command without waiting."""

    def mark_ready(self) -> None:
        """Note that the worker has become ready, so that it is restarted without delay when it dies."""

    def kill(self) -> None:
        """Kill the worker, for example when it hangs; another worker is started in its place."""

    def close(self) -> None:
        """Kill the worker and start no other worker."""


@dataclass(slots=True)
class ProcessSupervisor:
    """Supervisor of one worker process on this host. Its methods and callbacks are called in the server's event loop.

    Args:
        config: the first message to each worker that is started.
        on_event: called with each event that the worker sends.
        on_death: called after the worker has died, before another worker is started.
    """

    config: WorkerConfig
    on_event: Callable[[Event], None]
    on_death: Callable[[], None]
    _process: WorkerProcess[WorkerConfig | Command, Event] | None = None
    _outbox: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)
    _backoff: Backoff = field(default_factory=lambda: Backoff(MIN_RESTART_DELAY, MAX_RESTART_DELAY))
    _is_closed: bool = False
    _restart_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the worker process, a thread that sends it commands, and a thread that receives its events.

        Raises:
            WorkerError: the operating system refused to start the process.
        """
        device = self.config.device
        environment = None if device is None else {"CUDA_VISIBLE_DEVICES": device}
        process = WorkerProcess[WorkerConfig | Command, Event](
            "stillhouse.serve.worker.engine_process", Event, environment=environment
        )
        process.start()
        self._process, self._outbox = process, SimpleQueue()
        self._outbox.put(encode_message(self.config))
        writer = Thread(target=_write, args=(process.channel.transport, self._outbox), name="worker-send", daemon=True)
        writer.start()
        loop = asyncio.get_running_loop()
        Thread(target=self._receive, args=(process, loop), name="worker-receive", daemon=True).start()

    def send(self, command: Command) -> None:
        """Send a command without waiting; the command is lost if the worker has died."""
        self._outbox.put(encode_message(command))

    def mark_ready(self) -> None:
        """Note that the worker has become ready: it is restarted without delay when it dies."""
        self._backoff.reset()

    def kill(self) -> None:
        """Kill the process without waiting for its end; `on_death` is called later, and another process is started."""
        if self._process:
            self._process.kill(wait=False)

    def close(self) -> None:
        """Kill the process, wait for its end, and start no other process."""
        self._is_closed = True
        if self._restart_timer:
            self._restart_timer.cancel()
        self._outbox.put(None)
        if self._process:
            self._process.kill()

    def _deliver(self, process: WorkerProcess[WorkerConfig | Command, Event], event: Event) -> None:
        if process is self._process:
            self.on_event(event)

    def _handle_exit(self, process: WorkerProcess[WorkerConfig | Command, Event]) -> None:
        if self._is_closed or process is not self._process:
            return
        delay = self._backoff.next_delay()
        extra = {"code": process.wait(), "reason": process.exit_reason(), "restart_in": delay}
        log.warning("worker died", extra=extra)
        self._outbox.put(None)
        self.on_death()
        self._restart_timer = asyncio.get_running_loop().call_later(delay, self.start)

    def _receive(self, process: WorkerProcess[WorkerConfig | Command, Event], loop: asyncio.AbstractEventLoop) -> None:
        """Pass events to the event loop until the worker is gone; then report its end. Runs in a thread of its own.

        A worker whose messages cannot be read is killed.
        """
        channel = process.channel
        with suppress(RuntimeError):  # raised by a closed event loop, which needs no more events
            try:
                while True:
                    loop.call_soon_threadsafe(self._deliver, process, channel.receive())
            except TransportClosed:
                pass
            except msgspec.MsgspecError:
                log.exception("a worker sent an invalid message")
            process.kill()
            loop.call_soon_threadsafe(self._handle_exit, process)


def _write(transport: Transport, outbox: SimpleQueue[bytes | None]) -> None:
    with suppress(TransportClosed):
        while (content := outbox.get()) is not None:
            transport.send(content)
