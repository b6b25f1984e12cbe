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

from stillhouse.serve.worker.messages import Asked, Opening, Told, decode_told, encode

log = logging.getLogger(__name__)

SOONEST, LATEST = 0.25, 30.0
"""Seconds after which a worker that died while it opened is started again: the first, and at most."""


class Supervision(Protocol):
    """What the server needs of whoever holds a worker."""

    opening: Opening

    def start(self) -> None:
        """Start the process."""

    def ask(self, asked: Asked) -> None:
        """Send a message, without waiting for anything."""

    def opened(self) -> None:
        """It told that it is ready."""

    def kill(self) -> None:
        """End the process now."""

    def close(self) -> None:
        """End the process for good."""


@dataclass(slots=True)
class Supervisor:
    """One worker process. Its methods are called, and call back, in the server's loop.

    Args:
        opening: what the worker is told first.
        heard: takes what it tells.
        died: called when it is gone, before it is started again.
    """

    opening: Opening
    heard: Callable[[Told], None]
    died: Callable[[], None]
    process: subprocess.Popen[bytes] | None = None
    _outbox: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)
    _delay: float = 0.0
    _is_closed: bool = False
    _later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the process."""
        loop = asyncio.get_running_loop()
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "stillhouse.serve.worker.process", str(theirs.fileno())]
        device = self.opening.device
        seen = None if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=seen)
        theirs.close()
        self._outbox = SimpleQueue()
        self._outbox.put(encode(self.opening))
        Thread(target=self._write, args=(ours, self._outbox), name="to the worker", daemon=True).start()
        Thread(target=self._read, args=(ours, self.process, loop), name="from the worker", daemon=True).start()

    def ask(self, asked: Asked) -> None:
        """Send a message, without waiting for anything; nobody hears it where the worker is gone."""
        self._outbox.put(encode(asked))

    def opened(self) -> None:
        """The worker told that it is ready: when it dies next, it is started again at once."""
        self._delay = 0.0

    def kill(self) -> None:
        """End the process now; as `died` will tell."""
        if self.process:
            self.process.kill()

    def close(self, patience: float = 5.0) -> None:
        """End the process for good: it has so many seconds to leave by itself."""
        self._is_closed = True
        if self._later:
            self._later.cancel()
        self._outbox.put(None)
        if self.process:
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _gone(self, process: subprocess.Popen[bytes]) -> None:
        if self._is_closed or process is not self.process:
            return
        code = process.wait()
        log.warning("the worker died", extra={"code": code, "again_in": self._delay})
        self._outbox.put(None)
        self.died()
        self._later = asyncio.get_running_loop().call_later(self._delay, self.start)
        self._delay = min(max(2 * self._delay, SOONEST), LATEST)

    def _read(self, connection: Connection, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        def tell(told: Told) -> None:
            if process is self.process:
                self.heard(told)

        try:
            while True:
                loop.call_soon_threadsafe(tell, decode_told(connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except RuntimeError:  # the loop was closed
            return
        process.kill()  # a worker that does not speak is as good as none
        loop.call_soon_threadsafe(self._gone, process)

    @staticmethod
    def _write(connection: Connection, outbox: SimpleQueue[bytes | None]) -> None:
        try:
            while (content := outbox.get()) is not None:
                connection.send_bytes(content)
        except OSError:
            return
        _shut(connection)


def _shut(connection: Connection) -> None:
    """End a pipe that another thread is reading, which closing alone would not."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
