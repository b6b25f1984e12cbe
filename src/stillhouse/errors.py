"""Every error that Stillhouse raises on purpose.

    StillhouseError                 the root; `exit_code` is what the command line returns
    |-- InvalidRequest              a request that cannot be met as given (also a ValueError)
    |-- PipelineError               a pipeline directory that cannot be used
    |   |-- ManifestError           the manifest is missing, broken, or of another version
    |   `-- TamperedFile            a file does not have the checksum that the manifest states
    |-- ImportFailed                a model that cannot be imported as a pipeline
    |-- UnknownModel                no such embedded model, directory or hub id
    |-- RuntimeMissing              a runtime or an optional package that is not installed here
    |-- UnsupportedPrecision        a backend that cannot compute in the requested precision on this machine
    |-- BackendFailed               a runtime refused a model or failed while running it
    |-- FitFailed                   training cannot go on: no finite loss, no room for a checkpoint
    |-- Refused                     a server does not take a request now; the error says when to try again
    `-- NotAllowed                  a server does not take a request from this caller

Each message says what was given, what is allowed, and what to do about it.
"""


class StillhouseError(Exception):
    """Base class of all errors that Stillhouse raises on purpose. The message joins up to three parts.

    Args:
        problem: what was given, and what is wrong with it.
        allowed: what would have been accepted; None omits this part.
        fix: what the user can do now, a command where there is one; None omits this part.

    >>> print(InvalidRequest("steps is 0", allowed="a whole number from 1 to 1000", fix="try steps=35"))
    steps is 0; allowed: a whole number from 1 to 1000; try steps=35
    """

    exit_code = 2

    def __init__(self, problem: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        self.problem, self.allowed, self.fix = problem, allowed, fix
        parts = (problem, f"allowed: {allowed}" if allowed else None, fix)
        super().__init__("; ".join(part for part in parts if part))


class InvalidRequest(StillhouseError, ValueError):
    """A request that cannot be met as given: an unknown sampler, zero steps, a size that does not fit the model."""


class PipelineError(StillhouseError):
    """A pipeline directory that cannot be used."""


class ManifestError(PipelineError):
    """A pipeline's manifest (stillhouse.json) is missing, is not valid, or has a version that is not supported."""


class TamperedFile(PipelineError):
    """A file of a pipeline does not have the checksum that the pipeline's manifest states."""


class ImportFailed(StillhouseError):
    """A model cannot be imported as a pipeline: a component is missing, or the target directory is in use."""


class UnknownModel(StillhouseError):
    """A model's name is neither an embedded model, nor a pipeline directory, nor a hub id that can be reached."""


class RuntimeMissing(StillhouseError):
    """An inference runtime or an optional package that is needed is not installed; `fix` says how to install it."""


class UnsupportedPrecision(StillhouseError):
    """A backend cannot compute in the requested precision on this machine."""


class BackendFailed(StillhouseError):
    """A runtime refused a model file or failed while running it."""


class FitFailed(StillhouseError):
    """Training cannot go on, for example since the loss is not finite; the last checkpoint is kept."""


class Refused(StillhouseError):
    """A server does not take a request now, but would take it later.

    Args:
        problem: why the server does not take the request.
        reason: one word for metrics: queue, deadline, rate, quota, starting, draining, jobs or storage.
        retry_after: seconds after which the server would take the request if no other request came.
        fix: what the user can do now; None says to come back after `retry_after` seconds.
    """

    def __init__(self, problem: str, reason: str, retry_after: float, *, fix: str | None = None) -> None:
        super().__init__(problem, fix=fix or f"come back in {max(1, round(retry_after))} s")
        self.reason, self.retry_after = reason, retry_after


class NotAllowed(StillhouseError):
    """A caller of the server has no API key, a wrong one, or one that does not allow the request.

    Args:
        problem: what is wrong with the key.
        allowed: what the key allows; None omits this part of the message.
        is_known: whether the key exists.
    """

    def __init__(self, problem: str, *, allowed: str | None = None, is_known: bool = True) -> None:
        super().__init__(problem, allowed=allowed)
        self.is_known = is_known
