"""One way to make a picture, alone in its own process: `python -m benchmarks.subject NAME`.

The process says `ready` when it is warm, then answers every line on its standard input with the seconds of one
more picture. Threads of several runtimes in one process disturb each other; two quiet processes do not.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Self

PROMPT = "a small red circle left of a big blue square on a yellow background"
STEPS = 35
GUIDANCE = 3.0
_WARM_UP = 2


class Subject:
    """The process of one subject, as its parent holds it."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.subject", self.name, str(self.threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def __call__(self) -> float:
        """Seconds of one more picture."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._expect())

    def _expect(self, word: str = "") -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("= " + word):
                return line[2:]
        raise RuntimeError(f"subject {self.name} ended early")


def main() -> None:
    """Become a subject."""
    name, threads = sys.argv[1], int(sys.argv[2])
    picture = _SUBJECTS[name](threads)
    for _ in range(_WARM_UP):
        picture()
    print("= ready", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        picture()
        print(f"= {perf_counter() - began}", flush=True)


def _ours(backend: str | None, precision: str | None) -> Callable[[int], Callable[[], object]]:
    def prepare(threads: int) -> Callable[[], object]:
        import stillhouse

        pipeline = stillhouse.load("shapes", backend=backend, precision=precision, threads=threads)
        return lambda: pipeline.generate(PROMPT, steps=STEPS, guidance=GUIDANCE, seed=7)

    return prepare


def _diffusers(threads: int) -> Callable[[], object]:
    import torch
    from diffusers import StableDiffusionPipeline

    from stillhouse.models.load import find

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(find("shapes"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


_SUBJECTS: Mapping[str, Callable[[int], Callable[[], object]]] = {
    "stillhouse": _ours(None, None),
    "stillhouse, onnxruntime f32": _ours("onnxruntime", "f32"),
    "stillhouse, openvino f32": _ours("openvino", "f32"),
    "diffusers, torch fp32": _diffusers,
}
NAMES = tuple(_SUBJECTS)

if __name__ == "__main__":
    main()
