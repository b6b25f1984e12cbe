"""What a worker sends for a request: previews, and at the end the image or the description of an error."""

import traceback
from pathlib import Path
from typing import Literal

import msgspec

from stillhouse.errors import BackendFailed, StillhouseError

FinishReason = Literal["finished", "failed", "cancelled", "expired"]
"""Why a request ended.

"finished": the image is decoded. "failed": an error was raised. "cancelled": cancelled by the client. "expired": the
queue timeout passed before the start.
"""
_MAX_FRAMES = 24
"""Largest number of stack frames in a traceback summary; the innermost frames are kept."""


class RequestOutput(msgspec.Struct, frozen=True, tag=True):
    """How a request ended, with its image or its error. The worker sends it to the server as a message.

    Args:
        id: request id.
        finish_reason: why the request ended.
        content: image file of a finished request.
        error, error_type: message and class name of the error of a failed request; `WorkerDied`,
            `WorkerUnavailable` and `ServerShutdown` are errors of the server.
        traceback_summary: where in the worker the error was raised, for the log.
        queue_seconds: seconds from arrival to the first evaluation.
        denoise_seconds: seconds from the first evaluation to the end of the last one.
        decode_seconds: seconds from the last evaluation to the image file.
        batch_peers: mean number of other images in the batches that the request was part of.
        is_prompt_truncated: whether a tokenizer truncated the prompt or the negative prompt.
    """

    id: str
    finish_reason: FinishReason
    content: bytes = b""
    error: str = ""
    error_type: str = ""
    traceback_summary: str = ""
    queue_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    batch_peers: float = 0.0
    is_prompt_truncated: bool = False


class PreviewImage(msgspec.Struct, frozen=True, tag=True):
    """A preview of an unfinished image.

    Args:
        id: request id.
        index: number of completed evaluations.
        content: WebP file; empty if decoding failed.
        number: place of the preview among the previews that the client gets, from 0; set by the server.
    """

    id: str
    index: int
    content: bytes
    number: int = 0


def failed_output(request_id: str, error: Exception, action: str = "inference") -> RequestOutput:
    """Return the result of a request that failed with an error.

    A StillhouseError is changed in place: the references to its traceback and causes are removed, to free memory.

    Args:
        request_id: id of the request.
        error: the error. The message of a StillhouseError is kept; any other error becomes "ACTION failed with ...".
        action: what failed, as the message's subject.
    """
    summary = traceback_summary(error)
    if not isinstance(error, StillhouseError):
        error = BackendFailed(f"{action} failed with {type(error).__name__}: {error}")
    # The traceback is deleted, because its frames hold arrays. The frames and the error refer to each other, so the
    # arrays would stay in memory until the garbage collector runs.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return RequestOutput(
        request_id, "failed", error=str(error), error_type=type(error).__name__, traceback_summary=summary
    )


def traceback_summary(error: BaseException) -> str:
    """Return the stack frames of an error and its causes as text, innermost first.

    The text reads `images/files.py:80 read_picture < ...`, without messages: a log must not contain prompts or keys.

    >>> try:
    ...     [].pop()
    ... except IndexError as error:
    ...     traceback_summary(error).endswith("<module>")
    True
    """
    summary: list[str] = []
    cause: BaseException | None = error
    visited = set[int]()
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        frames = reversed(traceback.extract_tb(cause.__traceback__))
        summary[:0] = ["/".join(Path(frame.filename).parts[-2:]) + f":{frame.lineno} {frame.name}" for frame in frames]
        cause = cause.__cause__ or cause.__context__
    return " < ".join(summary[:_MAX_FRAMES])
