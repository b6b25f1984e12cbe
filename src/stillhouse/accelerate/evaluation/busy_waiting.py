"""Busy waiting: after a call, threads of onnxruntime wait for the next one without giving up the processor."""

from collections.abc import Callable
from time import monotonic, sleep

SPIN_SECONDS = 0.08
"""Seconds after a call until threads of onnxruntime no longer wait busily. They did so for 60 ms, and took 34 ms of the
processor; a call of another process that was timed meanwhile was up to twice as slow.
"""


class BusyWaiting:
    """Lets a process that is timed wait until the threads of other processes have ended their busy waiting.

    Args:
        clock: returns the present time in seconds.
        pause: waits for a number of seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic, pause: Callable[[float], object] = sleep) -> None:
        self._clock, self._pause = clock, pause
        self._owner: object = None
        self._end = 0.0

    def begin(self, process: object) -> None:
        """Wait, before a process is timed, until no other process waits busily."""
        left = self._end - self._clock()
        if left > 0 and process is not self._owner:
            self._pause(left)

    def end(self, process: object) -> None:
        """Note that a process was timed whose threads wait busily for its next call from now on."""
        self._owner, self._end = process, self._clock() + SPIN_SECONDS
