"""One candidate from nothing to a trial: built, opened, checked, raced and drawn with, in a process of its own."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.accelerate.calibration.calibration_data import Probe, crowd, gathered, read_probes
from stillhouse.accelerate.evaluation.accuracy import check_pictures, check_tensors, is_certain, judged, missed
from stillhouse.accelerate.evaluation.batch_scaling import BATCHES, curve, is_soon_open, may_catch_up
from stillhouse.accelerate.evaluation.candidate_process import LOG, Subject, SubjectFailed
from stillhouse.accelerate.evaluation.candidate_worker import CROWD, OUTPUTS, PICTURES
from stillhouse.accelerate.evaluation.latency import Effort, race
from stillhouse.accelerate.evaluation.sample_images import Drawn, read_drawn, write_strip
from stillhouse.accelerate.evaluation.task import TASK, Task
from stillhouse.accelerate.records.candidate import MADE, Candidate
from stillhouse.accelerate.records.report import Bounds, relative
from stillhouse.accelerate.records.trial import Trial
from stillhouse.backends.signature import read_signature
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults

LARGEST_TOGETHER = 256 << 20
"""Bytes of a graph and its weights up to which several are quantised at a time."""
REPRODUCE = "reproduce.py"
MADE_FOLDER = "made"
"""The folder, beside those of the trials, of the graphs that recipes make."""


@dataclass(slots=True)
class Bench:
    """What every candidate of a component is run against.

    Args:
        folder: where trials of this component lie.
        made: where the graphs lie that recipes make; empty: in a folder of that one.
        root: the result's directory, to which paths in the report are relative.
        graph: the component's own graph.
        probes: a file of recorded inputs.
        rows: samples in one call of a probe.
        bounds: to keep.
        pipeline: directory in which pictures are drawn; None for a bare ONNX file.
        components: what the other components of the pipeline are, by name.
        defaults: of the pipeline before anything was chosen; None for a bare ONNX file.
        requests: of the pictures that are compared; none where pictures would take too long.
        memory: bytes that a child may take, and the baseline's process beside it.
        limit: seconds that a child may take for one answer.
        effort: of the race.
        batches: whether the network takes batches, and its curve is worth knowing.
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
    memory: int | None = None
    limit: float = 600.0
    effort: Effort = field(default_factory=Effort)
    batches: bool = False
    made: Path = Path()
    defaults: Defaults | None = None

    def __post_init__(self) -> None:
        if self.made == Path():
            self.made = self.folder / MADE_FOLDER

    def task(self, candidate: Candidate) -> Task:
        """The candidate's task."""
        return Task(
            candidate,
            str(self.graph),
            str(self.folder / candidate.key),
            str(self.made / candidate.made),
            str(self.probes),
            self.threads,
            str(self.pipeline or ""),
            self.components,
            self.defaults,
        )


@dataclass(slots=True)
class Reference:
    """The baseline: its open process, what it answered to the probes, and the pictures it drew."""

    subject: Subject
    outputs: Sequence[Probe]
    drawn: Drawn | None = None


def attempt(candidate: Candidate, bench: Bench, reference: Reference | None) -> tuple[Trial, Reference | None]:
    """Try a candidate. Without a reference it becomes the baseline itself, and its process stays open.

    A baseline may miss a bound, of memory for example: others are compared with it all the same.

    Returns:
        the trial, whatever happened, and the reference where the candidate became it.
    """
    subject = Subject(bench.task(candidate), bench.memory, _beside(reference))
    trial = Trial(candidate, "failed", log=relative(subject.folder / LOG, bench.root))
    keeps = False
    try:
        make(candidate, bench, reference)
        subject.start()
        trial = replace(trial, reproduce=_write_reproduce(subject.folder, bench.root))
        trial = _opened(trial, subject, bench)
        outputs = read_probes(subject.folder / OUTPUTS)
        wanted = reference.outputs if reference else outputs
        trial = replace(trial, fidelity=check_tensors(wanted, outputs))
        trial = _raced(trial, subject, reference, bench)
        trial = _crowded(trial, subject, wanted, bench)
        if not subject.is_alive:  # a batch was too much for it, which says nothing of what is left to do
            subject.kill()
            subject = _again(subject.task, bench, _beside(reference))
        drawn = None
        if bench.requests and (reference is None or not (missed(trial, bench.bounds) or is_certain(trial))):
            drawn = _drawn(subject, bench)
            trial = replace(trial, pictures=_pictures(trial, drawn, reference, bench))
        trial = judged(trial, bench.bounds)
        keeps = reference is None and not any(one.nonfinite for one in trial.fidelity.values())
        if keeps:
            return trial, Reference(subject, outputs, drawn)
    except SubjectFailed as failure:
        trial = replace(trial, status="failed", reason=str(failure), peak_bytes=subject.peak or None)
    except ValueError as error:
        trial = replace(trial, status="failed", reason=str(error), peak_bytes=subject.peak or None)
    finally:
        if not keeps:
            subject.kill()
    return trial, None


def resume(candidate: Candidate, bench: Bench) -> Reference | None:
    """The baseline of an earlier run, open again, with what it answered and drew then; None where that is not there."""
    folder = bench.folder / candidate.key
    if not (folder / OUTPUTS).is_file() or (bench.requests and not (folder / PICTURES).is_file()):
        return None
    drawn = read_drawn(folder) if bench.requests else None
    try:
        return Reference(_again(bench.task(candidate), bench), read_probes(folder / OUTPUTS), drawn)
    except SubjectFailed:
        return None


def revive(reference: Reference, bench: Bench) -> None:
    """Open the baseline's process again, which has died.

    Raises:
        SubjectFailed: it cannot be opened.
    """
    reference.subject = _again(reference.subject.task, bench)


def _again(task: Task, bench: Bench, beside: Sequence[Subject] = ()) -> Subject:
    """A process with the task's network open, which was made before."""
    subject = Subject(task, bench.memory, beside)
    try:
        subject.start()
        subject.ask("build", limit=bench.limit)
        subject.ask("open", limit=bench.limit)
    except SubjectFailed:
        subject.kill()
        raise
    return subject


def make(candidate: Candidate, bench: Bench, reference: Reference | None = None) -> None:
    """Make the candidate's graph, if it has one of its own and it is not there, in a process that ends with it.

    While a large one is made, the baseline gives its memory back.

    Raises:
        SubjectFailed: it could not be made.
    """
    if candidate.recipe not in MADE or (bench.made / candidate.made).is_dir():
        return
    if reference and bytes_of(bench.graph) > LARGEST_TOGETHER:
        reference.subject.ask("rest", limit=bench.limit)
    with Subject(bench.task(candidate), bench.memory, _beside(reference)) as maker:
        maker.ask("build", limit=bench.limit)


def prebuild(candidates: Sequence[Candidate], bench: Bench, cores: int) -> None:
    """Make the graphs of all candidates, several at a time, while nothing is timed. What fails is tried again, and
    reported, when its turn comes. Networks of which two may not fit into the memory are left to their turn."""
    if cores < 2 or bytes_of(bench.graph) > LARGEST_TOGETHER:
        return
    shared = replace(bench, memory=None if bench.memory is None else bench.memory // cores)

    def prebuilt(candidate: Candidate) -> None:
        with contextlib.suppress(SubjectFailed):
            make(candidate, shared)

    wanted = {one.made: one for one in candidates if one.recipe in MADE}
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(prebuilt, wanted.values()))


def _beside(reference: Reference | None) -> tuple[Subject, ...]:
    return (reference.subject,) if reference else ()


def _opened(trial: Trial, subject: Subject, bench: Bench) -> Trial:
    built = subject.ask("build", limit=bench.limit)
    opened = subject.ask("open", limit=bench.limit)
    subject.ask("outputs", limit=bench.limit)
    held = subject.ask("held", limit=bench.limit) if trial.candidate.is_on_gpu else None
    graph = Path(built["graph"])
    made = graph != bench.graph
    return replace(
        trial,
        executed=opened["executed"],
        census=opened["census"],
        build_seconds=built["seconds"] if made else None,
        open_seconds=opened["seconds"],
        first_seconds=opened["first"],
        peak_bytes=subject.highest,
        gpu_bytes=held,
        file_bytes=bytes_of(graph),
        graph=relative(graph, bench.root),
        artefact=relative(graph.parent, bench.root) if made else None,
    )


def bytes_of(graph: Path) -> int:
    """What must be on disk to open this graph: itself, and the files that its weights lie in."""
    external = read_signature(graph).external
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in external)


def _raced(trial: Trial, subject: Subject, reference: Reference | None, bench: Bench) -> Trial:
    lap = lap_of(subject, bench.limit)
    outcome = race(lap_of(reference.subject, bench.limit) if reference else lap, lap, bench.effort)
    ratio = outcome.ratio
    if reference is None:  # against itself: 1 by definition, with the spread of this machine around it
        ratio = Ratio(1.0, ratio.low / ratio.value, ratio.high / ratio.value)
    batch = {str(bench.rows): outcome.candidate.median / bench.rows}
    trial = replace(trial, seconds=outcome.candidate, ratio=ratio, rows=bench.rows, batch=batch)
    if bench.batches and (reference is None or may_catch_up(trial, bench.effort.hopeless)):
        batch = curve(trial, lambda rows, calls: float(subject.ask("batch", rows, calls, limit=bench.limit)))
    return replace(trial, batch=batch)


def _crowded(trial: Trial, subject: Subject, outputs: Sequence[Probe], bench: Bench) -> Trial:
    """With the fidelity of a server's batch: engines take other kernels for it than for a few rows.

    A batch that it cannot run ends its curve, and nothing else.
    """
    rows = _rows_together(trial, bench)
    is_by_rows = all(array.shape[:1] == (bench.rows,) for array in outputs[0].feeds.values())
    if rows <= bench.rows or not is_by_rows or missed(trial, bench.bounds):
        return trial
    try:
        subject.ask("crowd", rows, limit=bench.limit)
    except SubjectFailed:
        return trial
    wanted = gathered(outputs, crowd(read_probes(bench.probes), rows))
    found = check_tensors([wanted], read_probes(subject.folder / CROWD))
    return replace(trial, fidelity={**trial.fidelity, **found})


def _rows_together(trial: Trial, bench: Bench) -> int:
    """The largest batch that was timed; where none was, a server's largest, if that is soon done."""
    timed = max(map(int, trial.batch), default=0)
    return BATCHES[-1] if bench.batches and timed == bench.rows and is_soon_open(trial) else timed


def lap_of(subject: Subject, limit: float) -> Callable[[int], float]:
    """The subject as `race` takes it."""
    return lambda calls: float(subject.ask("time", calls, limit=limit))


def _drawn(subject: Subject, bench: Bench) -> Drawn:
    subject.ask("draw", [asked(request) for request in bench.requests], limit=bench.limit)
    return read_drawn(subject.folder)


def asked(request: ImageRequest) -> dict[str, Any]:
    """A request as JSON: only what it says."""
    return {name: value for name, value in asdict(request).items() if value is not None}


def _pictures(trial: Trial, drawn: Drawn, reference: Reference | None, bench: Bench) -> Any:
    base = reference.drawn if reference and reference.drawn else drawn
    files = write_strip(bench.folder / trial.candidate.key, drawn, bench.root)
    return check_pictures(base.pictures, drawn.pictures, (base.latents, drawn.latents), files=files)


def _write_reproduce(folder: Path, root: Path) -> str:
    """A script that runs the candidate again as it was run."""
    path = folder / REPRODUCE
    path.write_text(
        '"""Builds, opens, runs and times this candidate again: `python reproduce.py`."""\n\n'
        "from pathlib import Path\n\n"
        "from stillhouse.accelerate.evaluation.reproduce import reproduce\n\n"
        f'reproduce(Path(__file__).parent / "{TASK}")\n',
        encoding="utf-8",
    )
    return relative(path, root)
