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
        weight_types: number of weights that are stored as integers and expanded before use, by type.
    """

    seconds: float
    first_seconds: float
    executed: str
    census: dict[str, int]
    weight_types: dict[str, int] = {}


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
    """Command to build the candidate's graph, for example by quantization, unless the graph exists."""


class UseGraph(Command[None], frozen=True):
    """Command to set the graph, built before, that the next `Open` command opens.

    Args:
        graph: path of the graph.
    """

    graph: str


class Open(Command[Opened], frozen=True):
    """Command to open the network on the candidate's backend and run the network once."""


class GpuMemory(Command[int | None], frozen=True):
    """Command to return the bytes of GPU memory that the network uses.

    The reply is None where the network uses no GPU, or where no count is available.
    """


class Release(Command[None], frozen=True):
    """Command to close the network, which releases its memory. A later command opens the network again."""


class RunProbes(Command[None], frozen=True):
    """Command to run the network on every set of recorded inputs, and to write the outputs to a file.

    The file is in the candidate's folder.
    """


class RunFeeds(Command[None], frozen=True):
    """Command to run the network on every set of inputs of a file, and to write the outputs to another file.

    Args:
        feeds: path of the inputs, as `calibration_data.write_probes` writes them.
        outputs: path of the file to write.
    """

    feeds: str
    outputs: str


class RunLargeBatch(Command[None], frozen=True):
    """Command to run one batch of rows of several recorded inputs, and to write the outputs to a file.

    Args:
        rows: number of rows of the batch.
    """

    rows: int


class TimeCalls(Command[float], frozen=True):
    """Command to run the network on recorded inputs, and to return the total seconds of all calls.

    Args:
        calls: number of calls, one after the other.
    """

    calls: int


class TimeBatch(Command[float], frozen=True):
    """Command to time the network at a batch size, and to return the seconds per row of the fastest call.

    Args:
        rows: batch size.
        calls: number of timed calls.
    """

    rows: int
    calls: int


class Generate(Command[float], frozen=True):
    """Command to generate a picture for each request, and to write the pictures and their final latents to a file.

    The reply is the number of seconds of all pictures together.

    Args:
        requests: the requests; those of one batch have texts of one padded length and pictures of one size.
        batch: number of pictures that are generated at the same time.
    """

    requests: tuple[ImageRequest, ...]
    batch: int = 1


class RecordTrajectory(Command[None], frozen=True):
    """Command to generate a picture and to write its latents and predictions at each evaluation to a file.

    Args:
        request: request of the picture.
        path: path of the file, as `trajectory.write_trajectory` writes it.
    """

    request: ImageRequest
    path: str


class TimePictures(Command[float], frozen=True):
    """Command to generate a picture several times, and to return the total seconds.

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
    | RunFeeds
    | RunLargeBatch
    | TimeCalls
    | TimeBatch
    | Generate
    | RecordTrajectory
    | TimePictures
)
Reply: TypeAlias = Built | Opened | Failure | float | int | None
