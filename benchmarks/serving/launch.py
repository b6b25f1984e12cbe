"""Server processes: start, wait until ready, stop, and report leftovers."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from stillhouse.errors import StillhouseError

SHARED = Path("/dev/shm")
START_TIMEOUT = 180.0
"""Seconds until a server must be ready, compilation included."""
_STOP_TIMEOUT = 20.0
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """Command of a server.

    Args:
        command: program and arguments.
        environment: environment of the process.
        shared: prefix of its files in shared memory; None if it has none.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    shared: str | None = None


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a stopped server left behind, removed since.

    Args:
        processes: names of remaining processes.
        files: names of files in shared memory.
        was_killed: whether the server ignored SIGTERM.
    """

    processes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    was_killed: bool = False


@dataclass(slots=True)
class RunningServer:
    """A server that is ready.

    Args:
        url: URL of the server.
        process: the process.
        leftovers: what it left behind; set after it was stopped.
    """

    url: str
    process: subprocess.Popen[bytes]
    leftovers: Leftovers = Leftovers()


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def run_server(launch: ServerCommand, port: int, ready: str, log: Path) -> Iterator[RunningServer]:
    """Start a server, yield it when it is ready, and stop it.

    Args:
        launch: command of the server.
        port: port of the server.
        ready: path that returns 200 when the server is ready.
        log: file for its output.

    Raises:
        StillhouseError: the server ended, or was not ready in time.
    """
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            launch.command,
            env=launch.environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = RunningServer(url, process)
    try:
        _wait_until_ready(server, url + ready, log)
        yield server
    finally:
        server.leftovers = _stop(process, launch.shared)


def _wait_until_ready(server: RunningServer, url: str, log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise StillhouseError(f"the server ended with code {server.process.returncode}: {_tail(log)}")
        with suppress(URLError, OSError), urlopen(url, timeout=5.0) as response:
            if response.status == 200:
                return
        time.sleep(_POLL)
    raise StillhouseError(f"the server was not ready after {START_TIMEOUT:.0f} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:]


def _stop(process: subprocess.Popen[bytes], shared: str | None) -> Leftovers:
    """Terminate a process, kill it after a timeout, and remove the rest of its session."""
    was_killed = False
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            was_killed = True
            process.kill()
            process.wait()
    time.sleep(_POLL)  # children that end with their parent need a moment
    others = _session(process.pid)
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    files = list(SHARED.glob(f"{shared}*")) if shared else []
    for path in files:
        path.unlink(missing_ok=True)
    return Leftovers(tuple(others.values()), tuple(path.name for path in files), was_killed)


def _session(leader: int) -> dict[int, str]:
    """Return the processes of a session: names by id."""
    processes = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, session, *_ = rest.split()
        if int(session) == leader and state != "Z":
            pid, _, name = head.partition(" (")
            processes[int(pid)] = name
    return processes
