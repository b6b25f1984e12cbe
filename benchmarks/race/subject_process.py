"""A subject in a process of its own: `python -m benchmarks.race.subject_process`.

Threads of several runtimes in one process disturb each other; two idle processes do not.
"""

from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.race.subject import BUILD, Subject, probe_inputs
from benchmarks.race.subjects import STUDENTS, SUBJECTS
from stillhouse.measure.memory import peak_resident_bytes
from stillhouse.workers.channel import TransportClosed
from stillhouse.workers.process import WorkerProcess, connect_to_parent

_TIMEOUT = 3600.0


class Open(msgspec.Struct, frozen=True, tag=True):
    """Command to open a subject."""

    name: str


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Command to generate a picture and to save it as an .npy file."""

    prompt: str
    steps: int
    path: str


class Predict(msgspec.Struct, frozen=True, tag=True):
    """Command to evaluate the denoiser once, on `probe_inputs`."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Reply to `Open`: seconds until the engine was open, imports included, and the precision that it reports."""

    seconds: float
    precision: str


class Generated(msgspec.Struct, frozen=True, tag=True):
    """Reply to `Generate`: seconds of the whole picture, of each evaluation, and of the decoder."""

    seconds: float
    evaluations: tuple[float, ...]
    decoding: float | None


class Predicted(msgspec.Struct, frozen=True, tag=True):
    """Reply to `Predict`: the output; None where the engine cannot be asked."""

    output: NDArray[Any] | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Reply to a command that failed."""

    reason: str


Command: TypeAlias = Open | Generate | Predict
Reply: TypeAlias = Opened | Generated | Predicted | Failed


class SubjectFailed(Exception):
    """A subject could not be opened or run; the text is the engine's."""


class SubjectProcess:
    """Runs a subject in a process of its own.

    Args:
        name: name of the subject in SUBJECTS or STUDENTS.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        folder = BUILD / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{file_stem(name)}.log"
        # OpenMP's threads must not spin while it is another process's turn.
        environment = {"OMP_WAIT_POLICY": "passive"}
        self._process: WorkerProcess[Command, Reply] = WorkerProcess(
            "benchmarks.race.subject_process", Reply, log_file=log, environment=environment
        )

    def open(self) -> Opened:
        """Start the process and open the engine.

        Raises:
            SubjectFailed: the engine is not installed, or failed.
        """
        self._process.start()
        opened: Opened = self._ask(Open(self.name))
        return opened

    def generate(self, prompt: str, steps: int, path: Path) -> Generated:
        """Generate a picture, save it, and return its times."""
        generated: Generated = self._ask(Generate(prompt, steps, str(path)))
        return generated

    def predict(self) -> NDArray[Any] | None:
        """Return the denoiser's output for `probe_inputs`; None where the engine cannot be asked."""
        predicted: Predicted = self._ask(Predict())
        return predicted.output

    def peak_bytes(self) -> int | None:
        """Return the peak of the process's resident memory."""
        return peak_resident_bytes(self._process.pid)

    def close(self) -> None:
        """End the process."""
        self._process.kill()

    def _ask(self, command: Command) -> Any:
        reply = self._process.request(command, type(command).__name__, _TIMEOUT)
        if isinstance(reply, Failed):
            raise SubjectFailed(reply.reason)
        return reply


def file_stem(name: str) -> str:
    """Return a subject's name as part of a file's name.

    >>> file_stem("diffusers, bf16")
    'diffusers-bf16'
    """
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    """Answer the parent's commands until it closes the channel."""
    channel = connect_to_parent(Command)
    subject: Subject | None = None
    while True:
        try:
            command = channel.receive()
        except TransportClosed:
            return
        try:
            if isinstance(command, Open):
                began = perf_counter()
                subject = {**SUBJECTS, **STUDENTS}[command.name].open()
                reply: Reply = Opened(perf_counter() - began, subject.precision)
            else:
                assert subject
                reply = _run(subject, command)
        except Exception as error:
            reply = Failed(f"{type(error).__name__}: {error}")
        channel.send(reply)


def _run(subject: Subject, command: Generate | Predict) -> Reply:
    if isinstance(command, Predict):
        return Predicted(subject.predict(*probe_inputs()))
    began = perf_counter()
    picture = subject.generate(command.prompt, command.steps)
    seconds = perf_counter() - began
    np.save(command.path, picture.image)
    return Generated(seconds, picture.evaluations, picture.decoding)


if __name__ == "__main__":
    main()
