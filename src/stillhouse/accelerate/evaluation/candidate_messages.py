"""The commands to the process of a candidate, and its replies."""

from typing import Generic, TypeAlias, TypeVar

import msgspec

from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.core import ImageRequest

Result = TypeVar("Result")


def _tag(name: str) -> str:
    """Return a class name in snake case: `TimeCalls` becomes `time_calls`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


class Command(msgspec.Struct, Generic[Result], frozen=True, tag=_tag):
    """A command; `Result` is the type of its reply. The methods of `CandidateWorker` describe the commands."""


class Built(msgspec.Struct, frozen=True, tag=True):
    """The graph to open, and the seconds that building it took."""

    graph: str
    seconds: float


class Opened(msgspec.Struct, frozen=True, tag=True):
    """How the network was opened.

    Args:
        seconds: duration of opening the network.
        first_seconds: duration of the network's first call.
        executed: precision in which the backend computes.
        census: number of operations by precision; empty where the backend does not report it.
    """

    seconds: float
    first_seconds: float
    executed: str
    census: dict[str, int]


class Failure(msgspec.Struct, frozen=True, tag=True):
    """Why a command failed: the parts of a `StillhouseError`."""

    problem: str
    allowed: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = (self.problem, self.allowed and f"allowed: {self.allowed}", self.fix)
        return "; ".join(part for part in parts if part)


class StartCandidate(Command[None], frozen=True):
    """The first command, which has no reply."""

    task: CandidateTask


class Build(Command[Built], frozen=True):
    """Make the candidate's graph."""


class UseGraph(Command[None], frozen=True):
    """Open a graph that was built before."""

    graph: str


class Open(Command[Opened], frozen=True):
    """Open the network and run it once."""


class GpuMemory(Command[int | None], frozen=True):
    """Return the bytes of GPU memory that the candidate uses; None where no number is available."""


class Release(Command[None], frozen=True):
    """Close the network."""


class RunProbes(Command[None], frozen=True):
    """Run every probe, and write the outputs to a file."""


class RunLargeBatch(Command[None], frozen=True):
    """Run `rows` rows of the probes in one call, and write the outputs to a file."""

    rows: int


class TimeCalls(Command[float], frozen=True):
    """Return the total seconds of `calls` calls."""

    calls: int


class TimeBatch(Command[float], frozen=True):
    """Return the seconds per row of a batch of `rows` rows: the minimum of `calls` calls."""

    rows: int
    calls: int


class Generate(Command[None], frozen=True):
    """Generate the pictures of the requests, and write the pictures to a file."""

    requests: tuple[ImageRequest, ...]


class TimePicture(Command[float], frozen=True):
    """Return the seconds of one picture."""

    request: ImageRequest


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
    | TimePicture
)
Reply: TypeAlias = Built | Opened | Failure | float | int | None
