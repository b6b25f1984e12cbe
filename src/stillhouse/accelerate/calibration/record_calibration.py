"""Recording the probes of a sweep, in a process of its own: opening networks leaves threads and memory behind."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import Probe, RecordingPipeline, record_probes, write_probes
from stillhouse.accelerate.calibration.inputs import infer_shapes, ones_inputs, plausible_inputs, read_npz_inputs
from stillhouse.accelerate.calibration.prompts import calibration_requests
from stillhouse.accelerate.evaluation.evaluate import request_to_json
from stillhouse.accelerate.workspace import f32_components, original_manifest
from stillhouse.core import ImageRequest
from stillhouse.errors import BackendFailed

PROBE_COUNT = 4
"""Probes of a bare ONNX file where the user gives none."""


def record_network_probes(
    graph: Path,
    files: Mapping[str, Path],
    inputs: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    all_ones: bool = False,
) -> dict[str, str]:
    """Write the probes of a bare ONNX file, and say what they are."""
    if inputs:
        feeds = read_npz_inputs(inputs, graph)
        told = f"{len(feeds)} recorded inputs of {inputs.name}"
    elif all_ones:
        feeds = ones_inputs(graph, infer_shapes(graph, overrides=shapes))
        told = "nothing but ones, as Auto-Acceleration did: the verdicts say little about real inputs"
    else:
        guessed = infer_shapes(graph, overrides=shapes)
        feeds = plausible_inputs(graph, guessed, PROBE_COUNT)
        sizes = ", ".join(f"{name} {list(shape)}" for name, shape in guessed.items())
        told = f"{PROBE_COUNT} plausible inputs, made by name and type: {sizes}; --inputs gives real ones"
    ((name, path),) = files.items()
    write_probes(path, [Probe(f"input {number}", feed) for number, feed in enumerate(feeds)])
    return {name: told}


def record_pipeline_probes(
    directory: Path, files: Mapping[str, Path], user_requests: Sequence[ImageRequest], threads: int | None
) -> dict[str, str]:
    """Draw a few pictures on the float32 baseline and write what each component was fed; say what that was.

    Raises:
        BackendFailed: the pipeline as it is draws no picture.
    """
    requests = calibration_requests(original_manifest(directory), user_requests)
    task = {
        "directory": str(directory),
        "files": {name: str(path) for name, path in files.items()},
        "requests": [request_to_json(request) for request in requests],
        "threads": threads,
    }
    command = [sys.executable, "-m", "stillhouse.accelerate.calibration.record_calibration"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendFailed(f"{directory} could not be probed: {last}", fix="try `stillhouse generate` with it first")
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return {name: f"{count} calls recorded while {len(requests)} pictures were made" for name, count in counts.items()}


def main() -> None:
    """Record what the task on standard input asks for; print how much it was."""
    task = json.load(sys.stdin)
    requests = [ImageRequest(**request) for request in task["requests"]]
    recorded = record_probes(_open_recorder(Path(task["directory"]), task["threads"]), requests)
    counts = {}
    for name, path in task["files"].items():
        write_probes(Path(path), recorded[name])
        counts[name] = len(recorded[name])
    print(json.dumps(counts))


def _open_recorder(directory: Path, threads: int | None) -> RecordingPipeline:
    """The pipeline as it was before anything was chosen, on onnxruntime; on its own engines where that is missing."""
    before = original_manifest(directory)
    components = f32_components(directory) if find_spec("onnxruntime") else before.components
    return RecordingPipeline(
        directory, threads=threads, manifest=before, components=components, defaults=before.defaults
    )


if __name__ == "__main__":
    main()
