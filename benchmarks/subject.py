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

GeneratorFactory = Callable[[int], Callable[[], object]]
"""From a number of threads to what makes one picture. Where that gives a float, it timed itself."""


class GeneratorProcess:
    """The process of one subject, as its parent holds it; `module` is the one that becomes it."""

    def __init__(self, name: str, threads: int, module: str = "benchmarks.subject") -> None:
        self.name, self.threads, self.module = name, threads, module

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", self.module, self.name, str(self.threads)]
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


def run_child(factories: Mapping[str, GeneratorFactory], warm_up: int = _WARM_UP) -> None:
    """Become the subject that the command line names."""
    name, threads = sys.argv[1], int(sys.argv[2])
    picture = factories[name](threads)
    for _ in range(warm_up):
        picture()
    print("= ready", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        told = picture()
        print(f"= {told if isinstance(told, float) else perf_counter() - began}", flush=True)


def _stillhouse(backend: str | None, precision: str | None) -> GeneratorFactory:
    def prepare(threads: int) -> Callable[[], object]:
        import stillhouse

        pipeline = stillhouse.load("shapes", backend=backend, precision=precision, threads=threads)
        return lambda: pipeline.generate(PROMPT, steps=STEPS, guidance=GUIDANCE, seed=7)

    return prepare


def _diffusers(threads: int) -> Callable[[], object]:
    import torch
    from diffusers import StableDiffusionPipeline

    from stillhouse.pipelines.load import find_pipeline

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(find_pipeline("shapes"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


_FACTORIES: Mapping[str, GeneratorFactory] = {
    "stillhouse": _stillhouse(None, None),
    "stillhouse, onnxruntime f32": _stillhouse("onnxruntime", "f32"),
    "stillhouse, openvino f32": _stillhouse("openvino", "f32"),
    "diffusers, torch fp32": _diffusers,
}
NAMES = tuple(_FACTORIES)

if __name__ == "__main__":
    run_child(_FACTORIES)
