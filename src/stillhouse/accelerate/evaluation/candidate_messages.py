"""Messages between `stillhouse accelerate` and the process that measures a candidate: commands and replies."""

from typing import Generic, TypeAlias, TypeVar

import msgspec

from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.core import ImageRequest

Result = TypeVar("Result")


def _tag(name: str) -> str:
    """Return a class name in snake case, as the tag of a message: `TimeCalls` becomes `time_calls`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


class Command(msgspec.Struct, Generic[Result], frozen=True, tag=_tag):
    """A command to the process that measures a candidate. `Result` is the type of the reply to a successful command."""


class Built(msgspec.Struct, frozen=True, tag=True):
    """Reply to `Build`, the command that builds a candidate's graph.

    Args:
        graph: path of the graph to open.
        seconds: seconds that building the graph took; 0 where nothing had to be built.
    """

    graph: str
    seconds: float


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Reply to `Open`, the command that opens a network and runs it once.

    Args:
        seconds: seconds that opening the network took.
        first_seconds: seconds that the network's first call took.
        executed: precision in which the backend computes, as the backend reports it.
        census: number of convolutions, matrix products and attentions by precision; empty where it is unknown.
    """

    seconds: float
    first_seconds: float
    executed: str
    census: dict[str, int]


class Failure(msgspec.Struct, frozen=True, tag=True):
    """Reply to a command that failed.

    Args:
        problem: what is wrong.
        allowed: what is allowed instead; None: unknown.
        fix: what to do; None: unknown.
    """

    problem: str
    allowed: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = (self.problem, self.allowed and f"allowed: {self.allowed}", self.fix)
        return "; ".join(part for part in parts if part)


class StartCandidate(Command[None], frozen=True):
    """First command of a process. It has no reply.

    Args:
        task: the candidate to measure, its inputs and folders.
    """

    task: CandidateTask


class Build(Command[Built], frozen=True):
    """Build the candidate's graph, for example by quantization, unless it exists."""


class UseGraph(Command[None], frozen=True):
    """Set the graph, built before, that the next `Open` command opens.

    Args:
        graph: path of the graph.
    """

    graph: str


class Open(Command[Opened], frozen=True):
    """Open the network on the candidate's backend and run it once."""


class GpuMemory(Command[int | None], frozen=True):
    """Return the bytes of GPU memory that the network uses; None where it uses none or no count is available."""


class Release(Command[None], frozen=True):
    """Close the network to release its memory. A later command opens it again."""


class RunProbes(Command[None], frozen=True):
    """Run the network on every set of recorded inputs, and write the outputs to a file in the candidate's folder."""


class RunLargeBatch(Command[None], frozen=True):
    """Run one batch that consists of rows of several recorded inputs, and write the outputs to a file.

    Args:
        rows: number of rows of the batch.
    """

    rows: int


class TimeCalls(Command[float], frozen=True):
    """Run the network on recorded inputs, and return the total seconds of all calls.

    Args:
        calls: number of calls, one after the other.
    """

    calls: int


class TimeBatch(Command[float], frozen=True):
    """Time the network at a batch size, and return the seconds per row of the fastest call.

    Args:
        rows: batch size.
        calls: number of timed calls.
    """

    rows: int
    calls: int


class Generate(Command[None], frozen=True):
    """Generate a picture for each request, and write the pictures and their final latents to a file."""

    requests: tuple[ImageRequest, ...]


class TimePictures(Command[float], frozen=True):
    """Generate a picture several times, and return the total seconds.

    Args:
        request: request of the picture.
        count: number of times.
    """

    request: ImageRequest
    count: int


CandidateCommand: TypeAlias = (
    StartCandidate
    | Build
    | UseGraph
    | Open
    | GpuMemory
    | Release
    | RunProbes
    | RunLargeBatch
    | TimeCalls
    | TimeBatch
    | Generate
    | TimePictures
)
Reply: TypeAlias = Built | Opened | Failure | float | int | None
