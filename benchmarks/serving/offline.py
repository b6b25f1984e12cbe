"""Image generation without a server in a separate process: `python -m benchmarks.serving.offline`.

The process prints `ready`, then answers each line with a seed and steps by the seconds of that image.
"""

import subprocess
import sys
from time import perf_counter
from types import TracebackType
from typing import Self

PROMPT = "a small red circle left of a big blue square on a yellow background"


class OfflineProcess:
    """Handle of the process."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.serving.offline"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def measure(self, seed: int, steps: int) -> float:
        """Return the seconds of one image."""
        assert self._process.stdin
        self._process.stdin.write(f"{seed} {steps}\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process without a server ended early")
        return line


def main() -> None:
    """Generate the images that standard input requests."""
    import stillhouse

    pipeline = stillhouse.load("shapes")
    pipeline.generate(PROMPT, steps=2)
    print("ready", flush=True)
    for line in sys.stdin:
        seed, steps = map(int, line.split())
        began = perf_counter()
        pipeline.generate(PROMPT, seed=seed, steps=steps)
        print(perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
