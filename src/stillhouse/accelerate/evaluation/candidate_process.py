"""The process of a candidate, as its parent uses it: commands with typed replies, within limits of time and memory."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from stillhouse.accelerate.evaluation.candidate_messages import Command, Failure, Reply, StartCandidate
from stillhouse.accelerate.evaluation.task import CandidateTask, write_task
from stillhouse.measure.memory import peak_resident_bytes, resident_bytes
from stillhouse.workers.process import MemoryLimit, WorkerError, WorkerProcess

LOG_FILE = "log.txt"
CandidateError = WorkerError
"""Raised where the process of a candidate fails; the message is a sentence for the report."""
Result = TypeVar("Result")


class CandidateProcess(WorkerProcess[Command[Any], Reply]):
    """The process of one candidate.

    Args:
        task: the candidate and its inputs; written into its folder, beside the log of the process.
        memory_limit: bytes of memory above which the process is killed; None: no limit.
        other_processes: processes whose memory counts towards the limit.

    >>> with CandidateProcess(task) as process:  # doctest: +SKIP
    ...     process.call(Build(), timeout=60)
    """

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
        """Write the task into its folder, start the process and send the task.

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
        """Return the peak memory of the process in bytes: the system's count, or our largest sample if that is more."""
        return max(self.observed_peak, peak_resident_bytes(self.pid) or 0)

    def call(self, command: Command[Result], timeout: float) -> Result:
        """Send a command and return its result.

        Args:
            command: command of `evaluation.candidate_messages`.
            timeout: seconds until the reply.

        Raises:
            CandidateError: the command failed, or the process died, exceeded the timeout, or exceeded its memory limit.
        """
        reply = self.request(command, str(command.__struct_config__.tag), timeout)
        if isinstance(reply, Failure):
            raise CandidateError(str(reply))
        return cast(Result, reply)
