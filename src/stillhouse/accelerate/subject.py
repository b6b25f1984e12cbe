"""A child process as its parent holds it: asked, it answers, and it takes no more time and memory than it may."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from stillhouse.accelerate.task import Task, write_task
from stillhouse.measure.memory import resident

LOG = "log.txt"
_GLANCE = 0.2
"""Seconds between two looks at a child's memory."""


class SubjectFailed(Exception):
    """A child that could not do what it was asked; the message is a sentence for the report."""


class Subject:
    """A candidate's process.

    Args:
        task: what it is about; written into its folder, with its log.
        memory: bytes above which it is killed; None: no limit.
        beside: the baseline's process, which takes of the same memory.

    >>> with Subject(task) as subject:  # doctest: +SKIP
    ...     subject.ask("build", limit=60)
    """

    def __init__(self, task: Task, memory: int | None = None, beside: "Subject | None" = None) -> None:
        self.task, self.memory, self.beside = task, memory, beside
        self.folder = Path(task.folder)
        self.peak = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "stillhouse.accelerate.child", str(write_task(self.task))]
        with (self.folder / LOG).open("ab") as log:
            # A group of its own: a Ctrl-C of the terminal is the parent's to answer.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._buffer = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process, which leads a group of its own."""
        return self._process.pid

    @property
    def taken(self) -> int:
        """Bytes of memory that it takes at this moment."""
        return resident(self.pid)

    def ask(self, command: str, *arguments: Any, limit: float) -> Any:
        """The child's answer.

        Raises:
            SubjectFailed: it reported a failure, died, took longer than `limit` seconds, or more memory than it may.
        """
        assert self._process.stdin
        line = json.dumps([command, *arguments]).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise SubjectFailed(self._death()) from None
        answer = self._answer(command, monotonic() + limit, limit)
        if answer.startswith(b"! "):
            given, allowed, fix = json.loads(answer[2:])
            raise SubjectFailed("; ".join(part for part in (given, allowed and f"allowed: {allowed}", fix) if part))
        return json.loads(answer[2:])

    def kill(self) -> None:
        """End the process and all that it started."""
        self._selector.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def _answer(self, command: str, deadline: float, limit: float) -> bytes:
        while b"\n" not in self._buffer:
            remaining = deadline - monotonic()
            if remaining <= 0:
                self.kill()
                raise SubjectFailed(f"{command} took more than {limit:.0f} s and was ended; give it more time")
            ready = self._selector.select(min(_GLANCE, remaining))
            self._watch()
            if ready:
                assert self._process.stdout
                got = os.read(self._process.stdout.fileno(), 1 << 16)
                if not got:
                    raise SubjectFailed(self._death())
                self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _watch(self) -> None:
        used = resident(self._process.pid)
        self.peak = max(self.peak, used)
        taken = self.beside.taken if self.beside else 0
        if self.memory is not None and used + taken > self.memory:
            self.kill()
            told = [f"{count / 2**30:.1f} GiB" for count in (used, taken, self.memory)]
            beside = f" beside the baseline's {told[1]}" if self.beside else ""
            raise SubjectFailed(f"it took {told[0]} of memory{beside}, more than the {told[2]} allowed")

    def _death(self) -> str:
        code = self._process.wait()
        last = _last_line(self.folder / LOG)
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}" + (f" after: {last}" if last else "")
        return f"its process ended with exit code {code}" + (f": {last}" if last else "")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
