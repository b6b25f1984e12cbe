"""Ctrl-C while libraries are imported."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["hold_interrupt"]


@contextmanager
def hold_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while the `with` block runs, and raise KeyboardInterrupt at its end if it was pressed.

    Extension modules may lose an exception that is raised while they are imported. Nothing is held back in other
    threads than the main one, and where another handler of SIGINT is installed than Python's own.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt
