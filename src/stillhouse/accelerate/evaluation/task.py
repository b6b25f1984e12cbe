"""The task of a process that measures a candidate: the candidate (backend, precision, options), its graph and inputs.

The task is stored as JSON, so that `reproduce` can repeat the measurement later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.pipelines.manifest import Component, Defaults, StepCache

TASK_FILE = "task.json"


@dataclass(frozen=True, slots=True)
class CandidateTask:
    """What a process needs to measure a candidate (backend, precision, options) of a network or of a whole pipeline.

    Paths are absolute.

    Args:
        candidate: the candidate to measure.
        graph: path of the network's ONNX graph; empty for a candidate of the whole pipeline.
        folder: folder for the log, outputs and pictures of the measurement.
        artifact: folder of the quantized graph; if it exists, the graph in it is used, else the graph is built.
        probes: file of recorded inputs, see `calibration_data.write_probes`; empty for a candidate of the whole
            pipeline.
        calibration: file of the inputs that static quantization is calibrated with; empty: there are none.
        threads: maximum number of threads; None: the runtime's default.
        pipeline: directory of the pipeline that generates pictures; empty for a single ONNX file.
        components: networks, by name, that the pipeline uses instead of those of its manifest.
        defaults: default settings that replace those of the manifest; None: those of the manifest.
        step_cache: the two graphs that feature caching (DeepCache) needs: the whole denoiser, and its shallow layers
            alone; None: no feature caching.
    """

    candidate: Candidate
    graph: str
    folder: str
    artifact: str
    probes: str = ""
    calibration: str = ""
    threads: int | None = None
    pipeline: str = ""
    components: Mapping[str, Component] = field(default_factory=dict)
    defaults: Defaults | None = None
    step_cache: StepCache | None = None

    @property
    def waits_busily(self) -> bool:
        """Return whether threads of the opened networks wait busily for the next call, as onnxruntime's do by default.

        That is only where a candidate or a component asks for it.
        """
        settings = (self.candidate.options, *(component.settings for component in self.components.values()))
        return any(options.get("spinning") == "1" for options in settings)


def write_task(task: CandidateTask) -> Path:
    """Write a task as JSON into its folder, which is created if needed, and return the path of the file.

    The file is written under a temporary name first, so that it is never incomplete.
    """
    path = Path(task.folder) / TASK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(task), indent=1) + b"\n")
    temporary.replace(path)
    return path


def read_task(path: Path) -> CandidateTask:
    """Return the task of a JSON file that `write_task` wrote.

    Raises:
        msgspec.ValidationError: the content is not that of a task.
    """
    return msgspec.json.decode(path.read_bytes(), type=CandidateTask)
