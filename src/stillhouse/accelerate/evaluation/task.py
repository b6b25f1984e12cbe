"""What a child process is told: which candidate, on which graph, with which probes. A file, so it can be repeated."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.json_decode import decode
from stillhouse.pipelines.manifest import Component, Defaults, StepCache

TASK_FILE = "task.json"


@dataclass(frozen=True, slots=True)
class CandidateTask:
    """One candidate's work. Paths are absolute.

    Args:
        candidate: what to try.
        graph: the component's own ONNX graph; empty for a candidate of the whole pipeline.
        folder: of the trial; its log, outputs and pictures are written there.
        artefact: folder of the graph that the recipe makes; it is made only where it is not there.
        probes: recorded inputs, see `probe.write_probes`; empty for a candidate of the whole pipeline.
        threads: at most so many; None leaves it to the runtime.
        pipeline: the directory in which the component is tried; empty for a bare ONNX file.
        components: what replaces the manifest's components, by name.
        defaults: what replaces the manifest's defaults.
        step_cache: the U-Net in two depths, where its steps are cached.
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
    """Write the task into its folder; see `read_task`."""
    path = Path(task.folder) / TASK_FILE
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(task), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read_task(path: Path) -> CandidateTask:
    """Read what `write_task` wrote. Raises DecodeError where it was spoilt."""
    return decode(CandidateTask, json.loads(path.read_bytes()))
