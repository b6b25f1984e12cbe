"""What the evaluations of all candidates of one network share: inputs, limits, and the open baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.calibration.other_inputs import OtherInputs
from stillhouse.accelerate.evaluation.candidate_process import CandidateProcess
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.evaluation.output_fidelity import NO_KINDS, OutputKinds
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import Component, Defaults

ARTIFACTS_FOLDER = "artifacts"
"""Name of the folder of built (quantized) graphs, next to the folders of a network's measurements."""
MIN_TIMEOUT = 1.0
"""Minimum timeout in seconds of a command, even after the deadline: processes that have nothing to do end in time."""


@dataclass(slots=True)
class EvaluationContext:
    """Inputs and limits that the evaluations of all candidates of one network share.

    Args:
        folder: directory in which each candidate gets a folder for its measurements.
        root: working directory of `stillhouse accelerate`; paths in the report are relative to it.
        graph: path of the network's original graph.
        probes: file of the probes, the inputs on which candidates are compared and timed.
        bounds: limits on accuracy and memory that an accepted candidate satisfies.
        rows: batch size of the probes.
        pipeline: directory of the pipeline that generates pictures; None for a single ONNX file.
        components: all networks of the pipeline by name.
        requests: requests of the pictures to compare; empty: no pictures are generated.
        threads: maximum number of threads; None: the backend's default.
        memory_limit: bytes that the candidate's and the baseline's process may use together; None: no limit.
        command_timeout: maximum seconds of one command to a process.
        deadline: time of `time.monotonic` at which commands are ended, too.
        timing_budget: limits on rounds and seconds of the latency comparison.
        measure_batches: whether to measure seconds per row at several batch sizes.
        artifacts: folder of built graphs; default: `ARTIFACTS_FOLDER` in `folder`.
        defaults: the pipeline's original default settings; None for a single ONNX file.
        calibration: file of the inputs that static quantization is calibrated with; None: there are none.
        other_inputs: inputs of other shapes and branches that the network allows; candidates run on them, too.
        has_open_batch: whether the first axis of every input has no fixed length, so that it may be a batch.
    """

    folder: Path
    root: Path
    graph: Path
    probes: Path
    bounds: Bounds
    rows: int = 1
    pipeline: Path | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    requests: Sequence[ImageRequest] = ()
    threads: int | None = None
    memory_limit: int | None = None
    command_timeout: float = 600.0
    deadline: float = float("inf")
    timing_budget: TimingBudget = field(default_factory=TimingBudget)
    measure_batches: bool = False
    artifacts: Path = Path()
    defaults: Defaults | None = None
    calibration: Path | None = None
    other_inputs: OtherInputs = field(default_factory=OtherInputs)
    has_open_batch: bool = True

    def __post_init__(self) -> None:
        if self.artifacts == Path():
            self.artifacts = self.folder / ARTIFACTS_FOLDER

    @property
    def timeout(self) -> float:
        """Return the seconds that a command to a process may take now, at least `MIN_TIMEOUT`."""
        return min(self.command_timeout, max(MIN_TIMEOUT, self.deadline - monotonic()))

    def make_task(self, candidate: Candidate) -> CandidateTask:
        """Return the task for the process that measures a candidate: the candidate, its graph, inputs and folders."""
        return CandidateTask(
            candidate,
            str(self.graph),
            str(self.folder / candidate.key),
            str(self.artifacts / candidate.artifact_key),
            str(self.probes),
            str(self.calibration or ""),
            self.threads,
            str(self.pipeline or ""),
            self.components,
            self.defaults,
        )


@dataclass(slots=True)
class BaselineRun:
    """The baseline, open for comparison with candidates: the model as given, opened without changes.

    Args:
        process: process in which the network is open.
        outputs: outputs for each probe, in order.
        samples: pictures generated with the baseline; None where no pictures are compared.
        kinds: which outputs are probabilities or logits.
        has_independent_rows: whether the first axis is a batch, so that each row's outputs depend on this row only.
        other_outputs: outputs for the inputs of each file of `EvaluationContext.other_inputs` that the network accepts.
    """

    process: CandidateProcess
    outputs: Sequence[Probe]
    samples: CandidateSamples | None = None
    kinds: OutputKinds = NO_KINDS
    has_independent_rows: bool = True
    other_outputs: Mapping[Path, Sequence[Probe]] = field(default_factory=dict)
