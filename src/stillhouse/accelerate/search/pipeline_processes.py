"""Pipelines that are open side by side, each in a process of its own: asked to draw, read, compared and timed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stillhouse.accelerate.calibration.prompts import captions, compared, has_oracle
from stillhouse.accelerate.evaluation.accuracy import check_pictures, judged
from stillhouse.accelerate.evaluation.candidate_process import LOG, Subject, SubjectFailed
from stillhouse.accelerate.evaluation.evaluate import asked
from stillhouse.accelerate.evaluation.latency import Effort, race
from stillhouse.accelerate.evaluation.sample_images import Drawn, read_drawn, write_strip
from stillhouse.accelerate.evaluation.task import Task
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report, relative
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import request_fields, walk
from stillhouse.accelerate.search.students import STUDENTS
from stillhouse.accelerate.workspace import Target
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache

PLAIN = Candidate(PIPELINE, "onnxruntime", "loop")
"""The pipeline's own walk on onnxruntime in float32: what ratios of whole pictures refer to."""
DEFAULT = Candidate(PIPELINE, "openvino", "loop", "auto")
"""The same on OpenVINO as it comes, in whatever precision it prefers."""
CHOSEN = walk({})
"""The same on the chosen networks."""
_FEW_ROUNDS = Effort(least=3, most=3)


class Drawing(Protocol):
    """What whole pictures need to know of the sweep that they are drawn for."""

    target: Target
    report: Report

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""

    @property
    def limit(self) -> float:
        """Seconds that a child may take for one answer."""

    @property
    def memory(self) -> int | None:
        """Bytes that all processes may take together."""

    def add(self, trial: Trial) -> None:
        """Put a trial into the report."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was drawn of one way to walk: the pictures, and which of them were right, where an oracle can tell."""

    drawn: Drawn
    correct: tuple[bool, ...] | None

    def first(self, count: int) -> "Looked":
        """The first pictures of these."""
        drawn = Drawn(self.drawn.pictures[:count], self.drawn.latents[:count])
        return Looked(drawn, None if self.correct is None else self.correct[:count])

    def then(self, more: "Looked") -> "Looked":
        """These pictures and more of the same way to walk."""
        pictures = np.concatenate([self.drawn.pictures, more.drawn.pictures])
        latents = np.concatenate([self.drawn.latents, more.drawn.latents])
        correct = None if self.correct is None or more.correct is None else self.correct + more.correct
        return Looked(Drawn(pictures, latents), correct)


class Loops:
    """Open pipelines by candidate; all ways to walk share the one of the chosen networks.

    Args:
        sweep: where trials go.
        manifest: of the pipeline.
        folder: where each candidate has a folder of its own, inside of the sweep's directory.
        stack: it closes what is opened here.
    """

    def __init__(self, sweep: Drawing, manifest: Manifest, folder: Path, stack: ExitStack) -> None:
        self.sweep, self.manifest, self.folder, self.stack = sweep, manifest, folder.resolve(), stack
        self.subjects: dict[str, Subject] = {}
        self.peaks: dict[str, int] = {}
        self.looked: dict[str, Looked] = {}

    def open(
        self,
        candidate: Candidate,
        components: Mapping[str, Component],
        defaults: Defaults,
        cache: StepCache | None = None,
    ) -> bool:
        """Open a pipeline of these parts and draw once; where that fails the trial goes into the report.

        The directory's own manifest may say what an earlier sweep chose, so nothing is left to it.
        """
        return self._open(candidate, self.sweep.target.directory, components, defaults, cache)

    def open_student(self, candidate: Candidate) -> bool:
        """Open a student as its own manifest says, and draw once; where that fails the trial goes into the report."""
        return self._open(candidate, self.sweep.target.directory / STUDENTS / candidate.options["student"])

    def _open(
        self,
        candidate: Candidate,
        directory: Path,
        components: Mapping[str, Component] | None = None,
        defaults: Defaults | None = None,
        cache: StepCache | None = None,
    ) -> bool:
        folder = self._folder(candidate)
        task = Task(
            candidate,
            graph="",
            folder=str(folder),
            artefact="",
            threads=self.sweep.threads,
            pipeline=str(directory.resolve()),
            components=components or {},
            defaults=defaults,
            step_cache=cache,
        )
        self.close(candidate)
        others = tuple(self.subjects.values())
        try:
            self._start(Subject(task, self.sweep.memory, others))
        except SubjectFailed as failure:
            log = relative(folder / LOG, self.sweep.target.directory)
            self.sweep.add(Trial(candidate, "failed", str(failure), log=log))
            return False
        return True

    def close(self, candidate: Candidate) -> None:
        """End the candidate's process, if it has one, and forget what it drew."""
        subject = self.subjects.pop(candidate.key, None)
        if subject:
            subject.kill()
            kept = {PLAIN.key, DEFAULT.key} - {candidate.key}
            self.looked = {key: one for key, one in self.looked.items() if key in kept}

    def mend(self) -> None:
        """Open what has died again.

        Raises:
            SubjectFailed: it cannot be opened.
        """
        for subject in list(self.subjects.values()):
            if not subject.is_alive:
                others = tuple(one for one in self.subjects.values() if one is not subject)
                self._start(Subject(subject.task, subject.memory, others))

    def has(self, candidate: Candidate) -> bool:
        """Whether it can draw."""
        return self._owner(candidate) in self.subjects

    def look(self, candidate: Candidate, count: int) -> Looked:
        """The first `count` pictures of a way to walk, drawn as far as they have not been; read where there is an
        oracle. Where there is none they are the few that every candidate draws, whatever `count` says."""
        before = self.looked.get(candidate.key)
        drawn = len(before.drawn.pictures) if before else 0
        if before is None or (drawn < count and before.correct is not None):
            more = self._look(candidate, drawn, count)
            self.looked[candidate.key] = before.then(more) if before else more
        return self.looked[candidate.key].first(count)

    def measure(self, candidate: Candidate, count: int) -> Trial:
        """Compare so many pictures with the plain loop's, time both in turns, judge, and report."""
        looked, base = self.look(candidate, count), self.look(PLAIN, count)
        folder = self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_strip(folder, looked.drawn, self.sweep.target.directory)
        correct = None if looked.correct is None or base.correct is None else (base.correct, looked.correct)
        latents = (base.drawn.latents, looked.drawn.latents)
        pictures = check_pictures(base.drawn.pictures, looked.drawn.pictures, latents, correct, files)
        outcome = race(self.lap(PLAIN), self.lap(candidate), _FEW_ROUNDS)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=outcome.candidate,
            ratio=outcome.ratio,
            peak_bytes=self.peaks[self._owner(candidate)],
        )
        trial = judged(trial, self.sweep.report.bounds)
        self.sweep.add(trial)
        return trial

    def glance(self, candidate: Candidate) -> Ratio:
        """How many times as fast it is as the plain walk on the same networks, from a few pictures."""
        return race(self.lap(CHOSEN), self.lap(candidate), _FEW_ROUNDS).ratio

    def lap(self, candidate: Candidate) -> Callable[[int], float]:
        """The candidate as `race` takes it: seconds of so many pictures."""
        subject, request = self._subject(candidate), self._request(candidate)
        return lambda calls: sum(float(subject.ask("picture", request, limit=self.sweep.limit)) for _ in range(calls))

    def _start(self, subject: Subject) -> None:
        candidate = subject.task.candidate
        self.stack.callback(subject.kill)
        subject.start()
        try:
            subject.ask("picture", self._request(candidate), limit=self.sweep.limit)
        except SubjectFailed:
            subject.kill()
            raise
        self.subjects[candidate.key] = subject
        self.peaks[candidate.key] = subject.highest

    def _look(self, candidate: Candidate, begin: int, count: int) -> Looked:
        if not has_oracle(self.manifest):
            return Looked(self._draw(candidate, compared(self.manifest, self.sweep.requests)), None)
        from stillhouse.shapes.oracle import score

        described = captions(count)[begin:]
        drawn = self._draw(candidate, [request for _, request in described])
        pairs = zip(drawn.pictures, described, strict=True)
        return Looked(drawn, tuple(bool(score(picture, one).all_correct) for picture, (one, _) in pairs))

    def _draw(self, candidate: Candidate, requests: Sequence[ImageRequest]) -> Drawn:
        subject = self._subject(candidate)
        subject.ask("draw", [_walked(candidate, request) for request in requests], limit=self.sweep.limit)
        return read_drawn(subject.folder)

    def _request(self, candidate: Candidate) -> dict[str, object]:
        return _walked(candidate, compared(self.manifest, self.sweep.requests)[0])

    def _subject(self, candidate: Candidate) -> Subject:
        return self.subjects[self._owner(candidate)]

    def _owner(self, candidate: Candidate) -> str:
        return CHOSEN.key if candidate.recipe == CHOSEN.recipe else candidate.key

    def _folder(self, candidate: Candidate) -> Path:
        return self.folder / candidate.key


def _walked(candidate: Candidate, request: ImageRequest) -> dict[str, object]:
    """The request as the candidate walks it, as JSON."""
    return asked(replace(request, **request_fields(candidate.options)))  # type: ignore[arg-type]
