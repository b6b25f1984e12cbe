"""The task of a candidate's process: the candidate, its graph and its probes. `reproduce` runs the file of a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.pipelines.manifest import Component, Defaults, StepCache

TASK_FILE = "task.json"


@dataclass(frozen=True, slots=True)
class CandidateTask:
    """The data that a candidate's process needs. Paths are absolute.

    Args:
        candidate: the candidate to evaluate.
        graph: the component's own ONNX graph; empty for a candidate of the whole pipeline.
        folder: folder of the trial, for the trial's log, outputs and pictures.
        artifact: folder of the graph that the recipe builds; an existing graph is not built again.
        probes: file of recorded inputs, see `calibration_data.write_probes`; empty for a candidate of the whole
            pipeline.
        threads: maximum number of threads; None: the runtime's default.
        pipeline: directory of the pipeline; empty for a bare ONNX file.
        components: components that replace those of the manifest, by name.
        defaults: defaults that replace the manifest's.
        step_cache: the denoiser split in two depths; None where its features are not cached.
    """

    candidate: Candidate
    graph: str
    folder: str
    artifact: str
    probes: str = ""
    threads: int | None = None
    pipeline: str = ""
    components: Mapping[str, Component] = field(default_factory=dict)
    defaults: Defaults | None = None
    step_cache: StepCache | None = None


def write_task(task: CandidateTask) -> Path:
    """Write the task into its folder as JSON, whole or not at all; return the path."""
    path = Path(task.folder) / TASK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(task), indent=1) + b"\n")
    temporary.replace(path)
    return path


def read_task(path: Path) -> CandidateTask:
    """Return the task that `write_task` wrote. Raises msgspec.ValidationError where the file was changed."""
    return msgspec.json.decode(path.read_bytes(), type=CandidateTask)
