"""A server in a separate process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 90.0
"""Timeout in seconds for a server to be ready."""
POLL = 0.02


@dataclass
class Running:
    """A started server.

    Args:
        process: server process, parent of its workers.
        url: URL of the HTTP server.
        grpc: host and port of the gRPC server; None if disabled.
        log: decoded log lines.
        collecting: thread that reads the log.
        data: default data directory.
    """

    process: subprocess.Popen[str]
    url: str
    grpc: str | None
    log: list[dict[str, Any]]
    collecting: threading.Thread
    data: Path

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Send a GET request and return status and body."""
        return self.send("GET", path, **headers)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Send a request with a JSON or bytes body and return status and body."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-type", "application/json")
        request = urllib.request.Request(self.url + path, content, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def is_ready(self) -> bool:
        """Return whether the server accepts requests."""
        try:
            return self.get("/health/ready")[0] == 200
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if children.exists():
            return [int(pid) for pid in children.read_text().split()]
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if words[0] != "Z" and int(words[1]) == self.process.pid:
                pids.append(int(stat.parent.name))
        return pids

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Wait for the process and its last log line."""
        self.process.wait()
        self.collecting.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def start_server(*arguments: str, cwd: Path, **environment: str) -> Running:
    """Start `stillhouse serve` on free ports; it may not be ready yet."""
    command = [sys.executable, "-m", "stillhouse", "serve", "--port", "0", "--grpc-port", "0", "--log", "json"]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[dict[str, Any]] = []
    collecting = threading.Thread(target=_collect, args=(process, log), daemon=True)
    collecting.start()
    assert process.stdout is not None
    first = process.stdout.readline()
    if not first:
        process.stdout.close()
        collecting.join()
        raise AssertionError(f"the server did not start: {process.wait()} {log}")
    second = process.stdout.readline()
    return Running(process, first.split()[3], second.split()[-1], log, collecting, cwd / "stillhouse-data")


@contextmanager
def running_server(*arguments: str, cwd: Path, **environment: str) -> Iterator[Running]:
    """Start a server, yield it when it is ready, and kill it with its workers."""
    server = start_server(*arguments, cwd=cwd, **environment)
    try:
        wait_until(server.is_ready)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.close()


def wait_until(condition: Any, timeout: float = PATIENCE) -> None:
    """Poll until the condition holds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"{condition} is still not so after {timeout} s"
        time.sleep(POLL)


def _collect(process: subprocess.Popen[str], log: list[dict[str, Any]]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            try:
                log.append(json.loads(line))
            except ValueError:
                log.append({"event": line.rstrip()})
