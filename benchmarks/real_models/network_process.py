"""A network in a process of its own: `python -m benchmarks.real_models.network_process OPENER PATH`.

OPENER says who opens it: plain onnxruntime the original, Stillhouse what `stillhouse accelerate` made of it. Threads of
several runtimes in one process disturb each other; two idle processes do not. Messages are pickles on the standard
streams, one answer for each.
"""

import os
import pickle
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from types import TracebackType
from typing import Any, Literal, Self

from benchmarks.real_models.real_model import Feeds, Outputs, Run

Opener = Literal["onnxruntime", "stillhouse"]
_TURN_SECONDS = 0.1
_LEAST_CALLS = 3
_PAUSE_SECONDS = 0.02
"""Until the threads of the network whose turn it was have stopped to spin."""
_ANSWER_SECONDS = 300
_ONLY_ERRORS = 3
"""Some files warn of each of their weights."""


class NetworkFailed(Exception):
    """A network could not be opened or run; the text is the runtime's."""


class NetworkProcess:
    """Starts a process that opens a network, and runs the network in it.

    Args:
        opener: onnxruntime: `onnxruntime.InferenceSession(path)` with its defaults, as most users open a file.
            stillhouse: `stillhouse.open_network(path)`.
        path: the ONNX file, or the directory that `stillhouse accelerate` made.
    """

    def __init__(self, opener: Opener, path: Path) -> None:
        self._opener, self._path = opener, path

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.real_models.network_process", self._opener, str(self._path)]
        # Both networks get the threads that their runtimes choose.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        try:
            self._ask("open")
        except NetworkFailed:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, feeds: Feeds) -> Outputs:
        """Return the outputs for one set of inputs, by name in the graph's order.

        Raises:
            NetworkFailed: the runtime refused the inputs, or failed.
        """
        outputs: Outputs = self._ask("run", feeds)
        return outputs

    def load(self, sets: Sequence[Feeds]) -> None:
        """Hand over the sets of inputs that `seconds` runs in turn."""
        self._ask("load", list(sets))

    def seconds(self) -> float:
        """Return the seconds of one call: the mean over a tenth of a second at least, after a call that warms up."""
        return float(self._ask("time"))

    def _ask(self, kind: str, value: Any = None) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump((kind, value), self._process.stdin)
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
                raise NetworkFailed(f"no answer in {_ANSWER_SECONDS} s")
            is_done, answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise NetworkFailed(f"the process ended with exit code {self._process.wait()}") from None
        if not is_done:
            raise NetworkFailed(answer)
        return answer


def main() -> None:
    """Answer messages on the standard input until it ends."""
    opener, path = sys.argv[1:]
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a runtime prints must not come between answers
        network = _Network(opener, path)
        while True:
            try:
                kind, value = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer = True, network.answer(kind, value)
            except Exception as error:
                answer = False, f"{type(error).__name__}: {error}"
            pickle.dump(answer, answers)
            answers.flush()


class _Network:
    """Opens a network when it is asked to, and runs or times it."""

    def __init__(self, opener: str, path: str) -> None:
        self._opener, self._path = opener, path
        self._sets: list[Feeds] = []

    def answer(self, kind: str, value: Any) -> Any:
        """Return the answer to a message of `NetworkProcess`."""
        if kind == "open":
            self._run = _open_plain(self._path) if self._opener == "onnxruntime" else _open_accelerated(self._path)
        elif kind == "load":
            self._sets = value
        elif kind == "run":
            return self._run(value)
        else:
            return _time_calls(self._run, self._sets)
        return None


def _open_plain(path: str) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_ONLY_ERRORS)
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def _open_accelerated(path: str) -> Run:
    import stillhouse

    network = stillhouse.open_network(path)
    return lambda feeds: dict(network(feeds))


def _time_calls(run: Run, sets: Sequence[Feeds]) -> float:
    sleep(_PAUSE_SECONDS)
    run(sets[0])
    calls, start = 0, perf_counter()
    while calls < _LEAST_CALLS or perf_counter() - start < _TURN_SECONDS:
        run(sets[calls % len(sets)])
        calls += 1
    return (perf_counter() - start) / calls


if __name__ == "__main__":
    main()
