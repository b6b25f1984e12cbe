"""A picture generator in its own process: `python -m benchmarks.generator_process NAME THREADS`.

The process prints `ready` after its warm-up. For every line on its standard input it generates a picture and prints
the seconds. Threads of several runtimes in one process disturb each other; two idle processes do not.
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
"""Takes the number of threads and returns a function that generates a picture. Where that returns a float, these are
its seconds.
"""


class GeneratorProcess:
    """Starts a generator's process, and generates pictures in it.

    Args:
        name: of the generator.
        threads: that it may use.
        module: that the process runs.
    """

    def __init__(self, name: str, threads: int, module: str = "benchmarks.generator_process") -> None:
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
        """Generate a picture and return its seconds."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._expect())

    def _expect(self, word: str = "") -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("= " + word):
                return line[2:]
        raise RuntimeError(f"the process of {self.name} ended early")


def run_child(factories: Mapping[str, GeneratorFactory], warm_up: int = _WARM_UP) -> None:
    """Run the generator that the command line names until standard input ends."""
    name, threads = sys.argv[1], int(sys.argv[2])
    picture = factories[name](threads)
    for _ in range(warm_up):
        picture()
    print("= ready", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        seconds = picture()
        print(f"= {seconds if isinstance(seconds, float) else perf_counter() - began}", flush=True)


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
