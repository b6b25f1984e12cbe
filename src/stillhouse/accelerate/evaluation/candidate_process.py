"""A child process as its parent holds it: asked, it answers, and it takes no more time and memory than it may."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from stillhouse.accelerate.evaluation.task import CandidateTask, write_task
from stillhouse.measure.memory import peak_resident_bytes, resident_bytes

LOG_FILE = "log.txt"
_POLL_SECONDS = 0.2
"""Seconds between two looks at a child's memory."""


class CandidateError(Exception):
    """A child that could not do what it was asked; the message is a sentence for the report."""


class CandidateProcess:
    """A candidate's process.

    Args:
        task: what it is about; written into its folder, with its log.
        memory: bytes above which it is killed; None: no limit.
        beside: other processes that take of the same memory.

    >>> with CandidateProcess(task) as process:  # doctest: +SKIP
    ...     process.call("build", timeout=60)
    """

    def __init__(
        self, task: CandidateTask, memory_limit: int | None = None, other_processes: "Sequence[CandidateProcess]" = ()
    ) -> None:
        self.task, self.memory_limit, self.other_processes = task, memory_limit, other_processes
        self.folder = Path(task.folder)
        self.observed_peak = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._buffer = b""

    def start(self) -> Self:
        """Start the process.

        Raises:
            SubjectFailed: the system would not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "stillhouse.accelerate.evaluation.candidate_worker",
            str(write_task(self.task)),
        ]
        try:
            with (self.folder / LOG_FILE).open("ab") as log:
                # A group of its own: a Ctrl-C of the terminal is the parent's to answer.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    cwd=self.folder,
                )
        except OSError as error:
            raise CandidateError(f"its process could not be started: {error.strerror or error}") from None
        assert self._process.stdout
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process, which leads a group of its own."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process is not None and self._process.poll() is None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that it takes at this moment."""
        return resident_bytes(self.pid) if self.is_alive else 0

    @property
    def peak_bytes(self) -> int:
        """Bytes of memory that it took when it had most, as the system counted, or as far as it was looked at."""
        return max(self.observed_peak, peak_resident_bytes(self.pid) or 0)

    def call(self, command: str, *arguments: Any, timeout: float) -> Any:
        """The child's answer.

        Raises:
            SubjectFailed: it reported a failure, died, took longer than `limit` seconds, or more memory than it may.
        """
        line = json.dumps([command, *arguments]).encode() + b"\n"
        assert self._process is not None and self._process.stdin
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError):  # it died, or was ended
            raise CandidateError(self._exit_reason()) from None
        answer = self._read_reply(command, monotonic() + timeout, timeout)
        if answer.startswith(b"! "):
            given, allowed, fix = json.loads(answer[2:])
            raise CandidateError("; ".join(part for part in (given, allowed and f"allowed: {allowed}", fix) if part))
        return json.loads(answer[2:])

    def kill(self) -> None:
        """End the process and all that it started."""
        self._selector.close()
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def _read_reply(self, command: str, deadline: float, timeout: float) -> bytes:
        assert self._process is not None
        while b"\n" not in self._buffer:
            remaining = deadline - monotonic()
            if remaining <= 0:
                self.kill()
                raise CandidateError(f"{command} took more than {timeout:.0f} s and was ended; give it more time")
            ready = self._selector.select(min(_POLL_SECONDS, remaining))
            self._check_memory()
            if ready:
                assert self._process.stdout
                got = os.read(self._process.stdout.fileno(), 1 << 16)
                if not got:
                    raise CandidateError(self._exit_reason())
                self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_memory(self) -> None:
        used = self.memory_bytes
        self.observed_peak = max(self.observed_peak, used)
        taken = sum(other.memory_bytes for other in self.other_processes)
        if self.memory_limit is not None and used + taken > self.memory_limit:
            self.kill()
            told = [f"{count / 2**30:.1f} GiB" for count in (used, taken, self.memory_limit)]
            beside = f" beside {told[1]} of what it is compared with" if self.other_processes else ""
            raise CandidateError(f"it took {told[0]} of memory{beside}, more than the {told[2]} allowed")

    def _exit_reason(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        last = _last_line(self.folder / LOG_FILE)
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}" + (f" after: {last}" if last else "")
        return f"its process ended with exit code {code}" + (f": {last}" if last else "")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
