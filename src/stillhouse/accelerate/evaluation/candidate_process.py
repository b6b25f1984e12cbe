"""The process that measures a candidate, as its parent sees it: typed commands and replies, time and memory limits."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, cast

from stillhouse.accelerate.evaluation.busy_waiting import BusyWaiting
from stillhouse.accelerate.evaluation.candidate_messages import (
    Command,
    Failure,
    Reply,
    StartCandidate,
    TimeBatch,
    TimeCalls,
    TimePictures,
)
from stillhouse.accelerate.evaluation.task import CandidateTask, write_task
from stillhouse.measure.memory import peak_resident_bytes, resident_bytes
from stillhouse.workers.process import MemoryLimit, WorkerError, WorkerProcess

LOG_FILE = "log.txt"
CandidateError = WorkerError
"""Error that is raised where the process that measures a candidate fails. Its message is a sentence for the report."""
Result = TypeVar("Result")


class CandidateProcess(WorkerProcess[Command[Any], Reply]):
    """The process that measures one candidate (backend, precision and options of a network or pipeline).

    Args:
        task: the candidate and its inputs. `start` writes the task into the task's folder, beside the log of the
            process.
        memory_limit: bytes of memory above which the process is killed; None: no limit.
        other_processes: other processes whose memory counts towards the limit.

    >>> with CandidateProcess(task) as process:  # doctest: +SKIP
    ...     process.call(Build(), timeout=60)
    """

    busy_waiting: ClassVar[BusyWaiting] = BusyWaiting()
    """One for all processes, because they share the processor."""

    def __init__(
        self, task: CandidateTask, memory_limit: int | None = None, other_processes: "Sequence[CandidateProcess]" = ()
    ) -> None:
        self.task, self.memory_limit = task, memory_limit
        self.folder = Path(task.folder)
        super().__init__(
            "stillhouse.accelerate.evaluation.candidate_worker",
            Reply,
            working_directory=self.folder,
            log_file=self.folder / LOG_FILE,
            memory=MemoryLimit(resident_bytes, memory_limit, other_processes),
        )

    def start(self) -> None:
        """Write the task to a file in the task's folder, start the process and send the task to the process.

        Raises:
            CandidateError: the operating system refused to start the process.
        """
        write_task(self.task)
        super().start()
        self.send(StartCandidate(self.task))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def peak_bytes(self) -> int:
        """Return the peak memory of the process in bytes, the larger of two values.

        One value is the peak that the operating system reports, the other the largest memory observed while waiting for
        replies.
        """
        return max(self.observed_peak, peak_resident_bytes(self.pid) or 0)

    def call(self, command: Command[Result], timeout: float) -> Result:
        """Send a command to the process, wait for the reply and return it.

        Args:
            command: command of `evaluation.candidate_messages`.
            timeout: maximum seconds until the reply.

        Raises:
            CandidateError: the command failed, or the process died, exceeded the timeout, or exceeded its memory limit.
        """
        is_timed = isinstance(command, (TimeCalls, TimeBatch, TimePictures))
        if is_timed:
            self.busy_waiting.begin(self)
        reply = self.request(command, str(command.__struct_config__.tag), timeout)
        if is_timed and self.task.waits_busily:
            self.busy_waiting.end(self)
        if isinstance(reply, Failure):
            raise CandidateError(str(reply))
        return cast(Result, reply)
