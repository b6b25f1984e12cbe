"""The hand that holds a worker: starts it, speaks with it, hears that it died, and starts it again.

The server's loop is never blocked: one thread reads what the worker tells, another writes what it is asked.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from stillhouse.serve.worker.messages import Command, Event, WorkerConfig, decode_event, encode_message

log = logging.getLogger(__name__)

MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.25, 30.0
"""Seconds after which a worker that died while it opened is started again: the first, and at most."""


class WorkerSupervisor(Protocol):
    """What the server needs of whoever holds a worker."""

    config: WorkerConfig

    def start(self) -> None:
        """Start the process."""

    def send(self, command: Command) -> None:
        """Send a message, without waiting for anything."""

    def mark_ready(self) -> None:
        """It told that it is ready."""

    def kill(self) -> None:
        """End the process now."""

    def close(self) -> None:
        """End the process for good."""


@dataclass(slots=True)
class ProcessSupervisor:
    """One worker process. Its methods are called, and call back, in the server's loop.

    Args:
        opening: what the worker is told first.
        heard: takes what it tells.
        died: called when it is gone, before it is started again.
    """

    config: WorkerConfig
    on_event: Callable[[Event], None]
    on_death: Callable[[], None]
    process: subprocess.Popen[bytes] | None = None
    _outbox: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)
    _delay: float = 0.0
    _is_closed: bool = False
    _restart_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the process."""
        loop = asyncio.get_running_loop()
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "stillhouse.serve.worker.process", str(theirs.fileno())]
        device = self.config.device
        seen = None if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=seen)
        theirs.close()
        self._outbox = SimpleQueue()
        self._outbox.put(encode_message(self.config))
        Thread(target=self._write, args=(ours, self._outbox), name="to the worker", daemon=True).start()
        Thread(target=self._read, args=(ours, self.process, loop), name="from the worker", daemon=True).start()

    def send(self, command: Command) -> None:
        """Send a message, without waiting for anything; nobody hears it where the worker is gone."""
        self._outbox.put(encode_message(command))

    def mark_ready(self) -> None:
        """The worker told that it is ready: when it dies next, it is started again at once."""
        self._delay = 0.0

    def kill(self) -> None:
        """End the process now; as `died` will tell."""
        if self.process:
            self.process.kill()

    def close(self, timeout: float = 5.0) -> None:
        """End the process for good: it has so many seconds to leave by itself."""
        self._is_closed = True
        if self._restart_timer:
            self._restart_timer.cancel()
        self._outbox.put(None)
        if self.process:
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _handle_exit(self, process: subprocess.Popen[bytes]) -> None:
        if self._is_closed or process is not self.process:
            return
        code = process.wait()
        log.warning("the worker died", extra={"code": code, "again_in": self._delay})
        self._outbox.put(None)
        self.on_death()
        self._restart_timer = asyncio.get_running_loop().call_later(self._delay, self.start)
        self._delay = min(max(2 * self._delay, MIN_RESTART_DELAY), MAX_RESTART_DELAY)

    def _read(self, connection: Connection, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        def tell(told: Event) -> None:
            if process is self.process:
                self.on_event(told)

        try:
            while True:
                loop.call_soon_threadsafe(tell, decode_event(connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except RuntimeError:  # the loop was closed
            return
        process.kill()  # a worker that does not speak is as good as none
        loop.call_soon_threadsafe(self._handle_exit, process)

    @staticmethod
    def _write(connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
        try:
            while (content := outbox.get()) is not None:
                connection.send_bytes(content)
        except OSError:
            return
        _shutdown_pipe(connection)


def _shutdown_pipe(connection: Connection) -> None:
    """End a pipe that another thread is reading, which closing alone would not."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
