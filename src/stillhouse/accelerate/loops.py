"""Pipelines that are open side by side, each in a process of its own: asked to draw, read, compared and timed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stillhouse.accelerate.attempt import asked
from stillhouse.accelerate.candidate import PIPELINE, Candidate
from stillhouse.accelerate.check import check_pictures, judged
from stillhouse.accelerate.prompts import captions, compared, has_oracle
from stillhouse.accelerate.race import Effort, race
from stillhouse.accelerate.report import Report, relative
from stillhouse.accelerate.strip import Drawn, read_drawn, write_strip
from stillhouse.accelerate.subject import LOG, Subject, SubjectFailed
from stillhouse.accelerate.target import Target
from stillhouse.accelerate.task import Task
from stillhouse.accelerate.trial import Trial
from stillhouse.accelerate.walks import request_fields, walk
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.models.manifest import TRIALS, Component, Defaults, Manifest, StepCache

PLAIN = Candidate(PIPELINE, "onnxruntime", "loop")
"""The pipeline's own walk on onnxruntime in float32: what ratios of whole pictures refer to."""
DEFAULT = Candidate(PIPELINE, "openvino", "loop", "auto")
"""The same on OpenVINO as it comes, in whatever precision it prefers."""
CHOSEN = walk({})
"""The same on the chosen networks."""
_EFFORT = Effort(least=3, most=4, seconds=3.0)
_GLANCE = Effort(least=3, most=3)


class Sweeping(Protocol):
    """What whole pictures need of the sweep that they are a part of."""

    target: Target
    report: Report
    tell: Callable[[str, float, float], None]

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""

    @property
    def limit(self) -> float:
        """Seconds that a child may take for one answer."""

    def add(self, trial: Trial) -> None:
        """Put a trial into the report."""

    def known(self, candidate: Candidate) -> Trial | None:
        """What was found out of it before."""

    def left(self, share: float) -> float:
        """Seconds left of the budget's share."""

    def chosen(self) -> Report:
        """The report with its choice among what was tried so far."""


@dataclass(slots=True)
class Looked:
    """What was drawn of one way to walk: the pictures, and which of them were right, where an oracle can tell."""

    drawn: Drawn
    correct: list[bool] | None

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
        stack: it closes what is opened here.
    """

    def __init__(self, sweep: Sweeping, manifest: Manifest, stack: ExitStack) -> None:
        self.sweep, self.manifest, self.stack = sweep, manifest, stack
        self.subjects: dict[str, Subject] = {}

    def open(
        self,
        candidate: Candidate,
        components: Mapping[str, Component],
        defaults: Defaults | None = None,
        cache: StepCache | None = None,
    ) -> bool:
        """Open a pipeline of these parts and draw once; where that fails the trial goes into the report."""
        folder = self._folder(candidate)
        task = Task(
            candidate,
            graph="",
            folder=str(folder),
            artefact="",
            threads=self.sweep.threads,
            pipeline=str(self.sweep.target.directory.resolve()),
            components=components,
            defaults=defaults,
            step_cache=cache,
        )
        subject = self.stack.enter_context(Subject(task))
        try:
            subject.ask("picture", self._request(candidate), limit=self.sweep.limit)
        except SubjectFailed as failure:
            log = relative(folder / LOG, self.sweep.target.directory)
            self.sweep.add(Trial(candidate, "failed", str(failure), log=log))
            return False
        self.subjects[candidate.key] = subject
        return True

    def has(self, candidate: Candidate) -> bool:
        """Whether it can draw."""
        return candidate.recipe == CHOSEN.recipe or candidate.key in self.subjects

    def look(self, candidate: Candidate, count: int, begin: int = 0) -> Looked:
        """Draw with a way to walk, and read the pictures where there is an oracle: those from `begin` to `count`."""
        if not has_oracle(self.manifest):
            return Looked(self._draw(candidate, compared(self.manifest, self.sweep.requests)), None)
        from stillhouse.models.shapes.oracle import score

        described = captions(count)[begin:]
        drawn = self._draw(candidate, [request for _, request in described])
        pairs = zip(drawn.pictures, described, strict=True)
        return Looked(drawn, [bool(score(picture, one).all_correct) for picture, (one, _) in pairs])

    def measure(self, candidate: Candidate, looked: Looked, base: Looked) -> Trial:
        """Compare the pictures with the base's, time them beside the plain loop, judge, and report."""
        folder = self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_strip(folder, looked.drawn, self.sweep.target.directory)
        correct = None if looked.correct is None or base.correct is None else (base.correct, looked.correct)
        latents = (base.drawn.latents, looked.drawn.latents)
        pictures = check_pictures(base.drawn.pictures, looked.drawn.pictures, latents, correct, files)
        outcome = race(self.lap(PLAIN), self.lap(candidate), _EFFORT)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=outcome.candidate,
            ratio=outcome.ratio,
            peak_bytes=self._subject(candidate).peak,
        )
        trial = judged(trial, self.sweep.report.bounds)
        self.sweep.add(trial)
        return trial

    def glance(self, candidate: Candidate) -> Ratio:
        """How many times as fast it is as the plain walk on the same networks, from a few pictures."""
        return race(self.lap(CHOSEN), self.lap(candidate), _GLANCE).ratio

    def lap(self, candidate: Candidate) -> Callable[[int], float]:
        """The candidate as `race` takes it: seconds of so many pictures."""
        subject, request = self._subject(candidate), self._request(candidate)
        return lambda calls: sum(float(subject.ask("picture", request, limit=self.sweep.limit)) for _ in range(calls))

    def _draw(self, candidate: Candidate, requests: Sequence[ImageRequest]) -> Drawn:
        subject = self._subject(candidate)
        subject.ask("draw", [_walked(candidate, request) for request in requests], limit=self.sweep.limit)
        return read_drawn(subject.folder)

    def _request(self, candidate: Candidate) -> dict[str, object]:
        return _walked(candidate, compared(self.manifest, self.sweep.requests)[0])

    def _subject(self, candidate: Candidate) -> Subject:
        return self.subjects[CHOSEN.key if candidate.recipe == CHOSEN.recipe else candidate.key]

    def _folder(self, candidate: Candidate) -> Path:
        return (self.sweep.target.directory / TRIALS / PIPELINE / candidate.key).resolve()


def _walked(candidate: Candidate, request: ImageRequest) -> dict[str, object]:
    """The request as the candidate walks it, as JSON."""
    return asked(replace(request, **request_fields(candidate.options)))  # type: ignore[arg-type]
