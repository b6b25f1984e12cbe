"""A server in a process of its own, for tests that come through its doors."""

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
"""Seconds until a server must be ready; it takes a few on a quiet machine."""
POLL = 0.02


@dataclass
class Running:
    """A server that was started.

    Args:
        process: of the front; its workers are its children.
        url: of its doors over HTTP.
        grpc: host and port of the other one; None where there is none.
        log: lines that it has written, decoded; `collecting` reads them.
        data: its directory of jobs, where the settings name no other.
    """

    process: subprocess.Popen[str]
    url: str
    grpc: str | None
    log: list[dict[str, Any]]
    collecting: threading.Thread
    data: Path

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return self.send("GET", path, **headers)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and body; a body is sent as JSON, bytes as they are."""
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
        """Whether it takes requests."""
        try:
            return self.get("/health/ready")[0] == 200
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if children.exists():
            return [int(pid) for pid in children.read_text().split()]
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if words[0] != "Z" and int(words[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Wait for the process to be gone, and for the last line that it wrote."""
        self.process.wait()
        self.collecting.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def start_server(*arguments: str, cwd: Path, **environment: str) -> Running:
    """Start `stillhouse serve` on free ports, in a directory; it may not be ready yet."""
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
    """A server that is ready, and ended afterwards with all of its workers."""
    server = start_server(*arguments, cwd=cwd, **environment)
    try:
        wait_until(server.is_ready)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.close()


def wait_until(condition: Any, patience: float = PATIENCE) -> None:
    """Ask again and again until it is so."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, f"{condition} is still not so after {patience} s"
        time.sleep(POLL)


def _collect(process: subprocess.Popen[str], log: list[dict[str, Any]]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            try:
                log.append(json.loads(line))
            except ValueError:
                log.append({"event": line.rstrip()})
