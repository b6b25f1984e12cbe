"""Every error that Stillhouse raises on purpose.

    StillhouseError                 the root; `exit_code` is what the command line returns
    |-- InvalidRequest              a request that cannot be met as given (also a ValueError)
    |-- PipelineError               a pipeline directory that cannot be used
    |   |-- ManifestError           the manifest is missing, broken, or of another version
    |   `-- TamperedFile            a file is not the one that the manifest names
    |-- ImportFailed                a source that cannot become a pipeline
    |-- UnknownModel                no such embedded model, directory or hub id
    |-- RuntimeMissing              a runtime or an extra that is not installed here
    |-- UnsupportedPrecision        a backend that cannot do what was asked on this machine
    |-- BackendFailed               a runtime refused a model or failed while running it
    |-- FitFailed                   training cannot go on: no finite loss, no room for a checkpoint
    |-- Refused                     a server does not take a request now; the error says when to try again
    `-- NotAllowed                  a server does not take a request from this caller

Each message says what was given, what is allowed, and what to do about it.
"""


class StillhouseError(Exception):
    """The root of the tree: a message in three parts.

    Args:
        problem: what was given, and what is wrong with it.
        allowed: what would have been accepted.
        fix: what the user can do now, a command where there is one.

    >>> print(InvalidRequest("steps is 0", allowed="a whole number from 1 to 1000", fix="try steps=35"))
    steps is 0; allowed: a whole number from 1 to 1000; try steps=35
    """

    exit_code = 2

    def __init__(self, problem: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        self.problem, self.allowed, self.fix = problem, allowed, fix
        parts = (problem, f"allowed: {allowed}" if allowed else None, fix)
        super().__init__("; ".join(part for part in parts if part))


class InvalidRequest(StillhouseError, ValueError):
    """A request that cannot be met as given: an unknown sampler, zero steps, a size that does not divide."""


class PipelineError(StillhouseError):
    """A pipeline directory that cannot be used."""


class ManifestError(PipelineError):
    """The manifest is missing, is not valid, or has a version that this program does not know."""


class TamperedFile(PipelineError):
    """A file's bytes are not those that the manifest names."""


class ImportFailed(StillhouseError):
    """A source that cannot become a pipeline: a missing component, an architecture that is not known."""


class UnknownModel(StillhouseError):
    """The name is no embedded model, no pipeline directory and no hub id that can be reached."""


class RuntimeMissing(StillhouseError):
    """A runtime or an extra is needed that is not installed; `fix` is the line that installs it."""


class UnsupportedPrecision(StillhouseError):
    """A backend does not have the precision that was asked for on this machine."""


class BackendFailed(StillhouseError):
    """A runtime refused a model file or failed while running it."""


class FitFailed(StillhouseError):
    """Training cannot go on; the last checkpoint is kept."""


class Refused(StillhouseError):
    """A server does not take a request now.

    Args:
        problem: why the server does not take the request.
        reason: one word for metrics: queue, deadline, rate, quota, starting, draining, jobs or storage.
        retry_after: seconds after which the server would take the request if no other request came.
        fix: what the user can do now.
    """

    def __init__(self, problem: str, reason: str, retry_after: float, *, fix: str | None = None) -> None:
        super().__init__(problem, fix=fix or f"come back in {max(1, round(retry_after))} s")
        self.reason, self.retry_after = reason, retry_after


class NotAllowed(StillhouseError):
    """The caller has no key, a wrong key, or a key that does not allow this; `is_known`: whether the key exists."""

    def __init__(self, problem: str, *, allowed: str | None = None, is_known: bool = True) -> None:
        super().__init__(problem, allowed=allowed)
        self.is_known = is_known
