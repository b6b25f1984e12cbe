"""The files of the race: checkpoint, pipeline, accelerated pipeline, and the formats that other engines read."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from benchmarks.race.genai_directory import compress_directory, write_genai_directory
from benchmarks.race.linked_pipeline import link_pipeline
from benchmarks.race.original_layout import write_single_file
from benchmarks.race.subject import ACCELERATED, BUILD, CACHED, CHECKPOINT, GENAI, GENAI_INT8, PIPELINE, SINGLE_FILE
from stillhouse.accelerate.selection.apply import make_step_cache
from stillhouse.pipelines.manifest import read_manifest

DONE = ".done"
"""Name of the file that marks a directory as whole, or part of its name."""


def prepare(budget: str) -> dict[str, float]:
    """Make the files that are missing, each in a process of its own; return the seconds of those that were made.

    Args:
        budget: time limit of `stillhouse accelerate`.
    """
    seconds = {}
    for name, target in _TARGETS.items():
        mark = BUILD / f"{target.name}{DONE}"
        if not mark.exists() and not _missing_packages(name):
            began = perf_counter()
            subprocess.run([sys.executable, "-m", "benchmarks.race.prepare", name, budget], check=True)
            seconds[name] = perf_counter() - began
            mark.touch()
    return seconds


def _missing_packages(name: str) -> list[str]:
    return [package for package in _NEEDED.get(name, ()) if find_spec(package) is None]


def _write_checkpoint(budget: str) -> None:
    write = ["benchmarks.sd15", "--folder", str(CHECKPOINT.parent), "--stage", "write"]
    # By the command, which chooses backends by measurement, as a user imports.
    import_ = ["stillhouse", "import", str(CHECKPOINT), "-o", str(PIPELINE), "--force"]
    for arguments in (write, import_):
        subprocess.run([sys.executable, "-m", *arguments], check=True)


def _accelerate(budget: str) -> None:
    command = [sys.executable, "-m", "stillhouse", "accelerate", str(PIPELINE), "-o", str(ACCELERATED)]
    networks = ["--component", "denoiser", "--component", "decoder", "--component", "text_encoder"]
    subprocess.run([*command, *networks, "--budget", budget, "--memory", "12GiB"], check=True)


def _split_denoiser(budget: str) -> None:
    step_cache = make_step_cache(ACCELERATED, read_manifest(ACCELERATED).components)
    link_pipeline(ACCELERATED, CACHED, step_cache=step_cache)


_STEPS: Mapping[str, Callable[[str], None]] = {
    "checkpoint": _write_checkpoint,
    "accelerated": _accelerate,
    "cached": _split_denoiser,
    "genai": lambda budget: write_genai_directory(CHECKPOINT, GENAI),
    "genai-int8": lambda budget: compress_directory(GENAI, GENAI_INT8),
    "single-file": lambda budget: write_single_file(CHECKPOINT, SINGLE_FILE),
}
_TARGETS: Mapping[str, Path] = {
    "checkpoint": CHECKPOINT,
    "genai": GENAI,
    "genai-int8": GENAI_INT8,
    "single-file": SINGLE_FILE,
    "accelerated": ACCELERATED,
    "cached": CACHED,
}
_NEEDED = {
    "genai": ("openvino_genai", "openvino_tokenizers"),
    "genai-int8": ("openvino_genai", "nncf"),
    "single-file": ("stable_diffusion_cpp",),
}

if __name__ == "__main__":
    _STEPS[sys.argv[1]](sys.argv[2])
