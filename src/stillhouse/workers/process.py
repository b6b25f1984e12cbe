"""Worker processes: `python -m MODULE`, with a channel of typed messages to the process that started them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, Any, Generic

from stillhouse.workers.channel import Channel, Received, Sent, SocketTransport, TransportClosed
from stillhouse.workers.lifetime import die_with_parent

_POLL_SECONDS = 0.2
"""Seconds between two measurements of memory while a reply is awaited."""

_EXIT_SECONDS = 30.0
"""Seconds that a process has to end once its channel is closed. A crashed process may first write a core dump."""


class WorkerError(Exception):
    """A worker process failed: it ended, took too much time or memory, or could not be started."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """How the memory of a process is measured, and its limit.

    Args:
        resident_bytes: returns the bytes of memory that a process, given by its id, and its descendants hold.
        limit: bytes that the process and `others` may hold together; None: no limit.
        others: further processes that count towards the limit.
    """

    resident_bytes: Callable[[int], int]
    limit: int | None = None
    others: "Sequence[WorkerProcess[Any, Any]]" = ()


class WorkerProcess(Generic[Sent, Received]):
    """A process that runs a module and answers messages, in a session and process group of its own.

    Args:
        module: name of the module, which must call `connect_to_parent`.
        received: type of the messages that the process sends, as in `Channel`.
        working_directory: directory in which the process runs; None: the directory of its parent.
        log_file: file to which the output of the process is appended; None: the output goes where its parent's goes.
        environment: environment variables of the process, in addition to its parent's variables.
        memory: how its memory is measured, and the limit that is checked while `request` waits for a reply; None:
            memory is not measured.
    """

    def __init__(
        self,
        module: str,
        received: Any,
        *,
        working_directory: Path | None = None,
        log_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        memory: MemoryLimit | None = None,
    ) -> None:
        self.module, self.working_directory, self.log_file = module, working_directory, log_file
        self.environment, self.memory = environment, memory
        self.observed_peak = 0
        self._received = received
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[Sent, Received] | None = None

    @property
    def channel(self) -> Channel[Sent, Received]:
        """The channel for messages to and from the process, which must have been started."""
        assert self._channel is not None
        return self._channel

    @property
    def pid(self) -> int:
        """The id of the process, which is also the id of its process group; the process must have been started."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the process holds now; 0 where it does not run or is not measured."""
        return self.memory.resident_bytes(self.pid) if self.memory and self.is_alive else 0

    def start(self) -> None:
        """Start the process and open the channel to it.

        Raises:
            WorkerError: the operating system refused to start the process.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._spawn(theirs)
        except OSError as error:
            ours.close()
            raise WorkerError(f"the worker process could not be started: {error.strerror or error}") from None
        self._channel = Channel(SocketTransport(ours), self._received)

    def send(self, message: Sent) -> None:
        """Send a message to the process.

        Raises:
            WorkerError: the process has ended.
        """
        try:
            self.channel.send(message)
        except TransportClosed:
            raise WorkerError(self.exit_reason()) from None

    def request(self, message: Sent, name: str, timeout: float) -> Received:
        """Send a message, wait for the reply and return it. A process that exceeds its time or memory is killed.

        `timeout` is in seconds. `name` is what an error message calls the request. If the process died, took longer
        than `timeout`, or exceeded its memory limit, WorkerError is raised.
        """
        deadline = monotonic() + timeout
        self.send(message)
        try:
            while True:
                remaining = deadline - monotonic()
                if remaining <= 0:
                    self.kill()
                    raise WorkerError(f"{name} took more than {timeout:.0f} s and was ended; set a longer timeout")
                is_ready = self.channel.transport.wait(min(_POLL_SECONDS, remaining))
                self._check_memory()
                if is_ready:
                    return self.channel.receive()
        except TransportClosed:
            raise WorkerError(self.exit_reason()) from None

    def kill(self, *, wait: bool = True) -> None:
        """Kill the process and all processes of its group, and close the channel.

        Args:
            wait: whether to return only when the process has ended, which takes seconds where it holds much memory.
        """
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._channel is not None:
            self._channel.transport.close()
        if wait:
            self.wait()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the process.

        Args:
            timeout: seconds; None: wait without a limit.

        Returns:
            The exit code, or minus the number of the signal that ended the process; None where the process still runs.
        """
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout)
        return None

    def exit_reason(self) -> str:
        """Return a sentence that says how the process ended: its signal or exit code, and the last line of its log.

        A process that has closed its channel and does not end within 30 seconds is killed.
        """
        code = self.wait(_EXIT_SECONDS)
        if code is None:
            self.kill()
            code = self.wait()
        last = _last_line(self.log_file) if self.log_file else ""
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}" + (f" after: {last}" if last else "")
        return f"its process ended with exit code {code}" + (f": {last}" if last else "")

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        def spawn(output: IO[bytes] | None) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", self.module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # in a session of its own, the worker does not get the Ctrl-C of a terminal
                cwd=self.working_directory,
                env={**os.environ, **self.environment} if self.environment else None,
            )

        if self.log_file is None:
            return spawn(None)
        with self.log_file.open("ab") as log:
            return spawn(log)

    def _check_memory(self) -> None:
        if self.memory is None:
            return
        used = self.memory_bytes
        self.observed_peak = max(self.observed_peak, used)
        others = sum(process.memory_bytes for process in self.memory.others)
        if self.memory.limit is not None and used + others > self.memory.limit:
            self.kill()
            sizes = [f"{count / 2**30:.1f} GiB" for count in (used, others, self.memory.limit)]
            shared = f" beside {sizes[1]} of the processes that share its limit" if self.memory.others else ""
            problem = f"the worker process took {sizes[0]} of memory{shared}, more than the {sizes[2]} allowed"
            raise WorkerError(f"{problem}; set a higher limit")


@dataclass(slots=True)
class Backoff:
    """Delays before restarts of a process that keeps dying: 0, then `first`, then twice the delay before.

    Args:
        first: seconds before the second restart.
        longest: upper limit of a delay, in seconds.

    >>> backoff = Backoff(first=1.0, longest=3.0)
    >>> [backoff.next_delay() for _ in range(5)]
    [0.0, 1.0, 2.0, 3.0, 3.0]
    """

    first: float
    longest: float
    _delay: float = 0.0

    def next_delay(self) -> float:
        """Return the seconds to wait before the next restart, and set a longer delay for the restart after it."""
        delay = self._delay
        self._delay = min(max(2 * delay, self.first), self.longest)
        return delay

    def reset(self) -> None:
        """Make the next delay 0 again. To be called when the process has started well."""
        self._delay = 0.0


def connect_to_parent(received: Any) -> Channel[Any, Any]:
    """Return the channel to the parent, the process that started this one. This process is killed when its parent ends.

    Args:
        received: type of the messages that this process receives, as in `Channel`.
    """
    die_with_parent()
    return Channel(SocketTransport(socket.socket(fileno=int(sys.argv[1]))), received)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
