"""Pipelines that are open side by side, each in a process of its own: asked to draw, read, compared and timed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stillhouse.accelerate.calibration.prompts import comparison_requests, has_oracle, held_out_captions
from stillhouse.accelerate.evaluation.accuracy import compare_pictures, judge_trial
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.evaluate import request_to_json
from stillhouse.accelerate.evaluation.latency import TimingBudget, compare_latency
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples, read_candidate_samples, write_sample_images
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report, relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import request_fields, variant_candidate
from stillhouse.accelerate.search.students import STUDENTS_FOLDER
from stillhouse.accelerate.workspace import Workspace
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache

BASELINE_PIPELINE = Candidate(PIPELINE, "onnxruntime", "baseline")
"""The pipeline's own walk on onnxruntime in float32: what ratios of whole pictures refer to."""
OPENVINO_PIPELINE = Candidate(PIPELINE, "openvino", "baseline", "auto")
"""The same on OpenVINO as it comes, in whatever precision it prefers."""
CHOSEN_PIPELINE = variant_candidate({})
"""The same on the chosen networks."""
_SHORT_BUDGET = TimingBudget(min_rounds=3, max_rounds=3)


class SweepContext(Protocol):
    """What whole pictures need to know of the sweep that they are drawn for."""

    workspace: Workspace
    report: Report

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""

    @property
    def timeout(self) -> float:
        """Seconds that a child may take for one answer."""

    @property
    def memory_limit(self) -> int | None:
        """Bytes that all processes may take together."""

    def add_trial(self, trial: Trial) -> None:
        """Put a trial into the report."""


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """What was drawn of one way to walk: the pictures, and which of them were right, where an oracle can tell."""

    samples: CandidateSamples
    correct: tuple[bool, ...] | None

    def head(self, count: int) -> "ScoredSamples":
        """The first pictures of these."""
        drawn = CandidateSamples(self.samples.pictures[:count], self.samples.latents[:count])
        return ScoredSamples(drawn, None if self.correct is None else self.correct[:count])

    def concatenate(self, more: "ScoredSamples") -> "ScoredSamples":
        """These pictures and more of the same way to walk."""
        pictures = np.concatenate([self.samples.pictures, more.samples.pictures])
        latents = np.concatenate([self.samples.latents, more.samples.latents])
        correct = None if self.correct is None or more.correct is None else self.correct + more.correct
        return ScoredSamples(CandidateSamples(pictures, latents), correct)


class PipelineProcesses:
    """Open pipelines by candidate; all ways to walk share the one of the chosen networks.

    Args:
        sweep: where trials go.
        manifest: of the pipeline.
        folder: where each candidate has a folder of its own, inside of the sweep's directory.
        stack: it closes what is opened here.
    """

    def __init__(self, sweep: SweepContext, manifest: Manifest, folder: Path, stack: ExitStack) -> None:
        self.sweep, self.manifest, self.folder, self.stack = sweep, manifest, folder.resolve(), stack
        self.processes: dict[str, CandidateProcess] = {}
        self.peaks: dict[str, int] = {}
        self.scored: dict[str, ScoredSamples] = {}

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
        return self._open(candidate, self.sweep.workspace.directory, components, defaults, cache)

    def open_student(self, candidate: Candidate) -> bool:
        """Open a student as its own manifest says, and draw once; where that fails the trial goes into the report."""
        return self._open(candidate, self.sweep.workspace.directory / STUDENTS_FOLDER / candidate.options["student"])

    def _open(
        self,
        candidate: Candidate,
        directory: Path,
        components: Mapping[str, Component] | None = None,
        defaults: Defaults | None = None,
        cache: StepCache | None = None,
    ) -> bool:
        folder = self._folder(candidate)
        task = CandidateTask(
            candidate,
            graph="",
            folder=str(folder),
            artifact="",
            threads=self.sweep.threads,
            pipeline=str(directory.resolve()),
            components=components or {},
            defaults=defaults,
            step_cache=cache,
        )
        self.close(candidate)
        others = tuple(self.processes.values())
        try:
            self._start(CandidateProcess(task, self.sweep.memory_limit, others))
        except CandidateError as failure:
            log = relative_path(folder / LOG_FILE, self.sweep.workspace.directory)
            self.sweep.add_trial(Trial(candidate, "failed", str(failure), log=log))
            return False
        return True

    def close(self, candidate: Candidate) -> None:
        """End the candidate's process, if it has one, and forget what it drew."""
        subject = self.processes.pop(candidate.key, None)
        if subject:
            subject.kill()
            kept = {BASELINE_PIPELINE.key, OPENVINO_PIPELINE.key} - {candidate.key}
            self.scored = {key: one for key, one in self.scored.items() if key in kept}

    def reopen_dead(self) -> None:
        """Open what has died again.

        Raises:
            SubjectFailed: it cannot be opened.
        """
        for subject in list(self.processes.values()):
            if not subject.is_alive:
                others = tuple(one for one in self.processes.values() if one is not subject)
                self._start(CandidateProcess(subject.task, subject.memory_limit, others))

    def is_open(self, candidate: Candidate) -> bool:
        """Whether it can draw."""
        return self._process_key(candidate) in self.processes

    def score_samples(self, candidate: Candidate, count: int) -> ScoredSamples:
        """The first `count` pictures of a way to walk, drawn as far as they have not been; read where there is an
        oracle. Where there is none they are the few that every candidate draws, whatever `count` says."""
        before = self.scored.get(candidate.key)
        drawn = len(before.samples.pictures) if before else 0
        if before is None or (drawn < count and before.correct is not None):
            more = self._generate_and_score(candidate, drawn, count)
            self.scored[candidate.key] = before.concatenate(more) if before else more
        return self.scored[candidate.key].head(count)

    def evaluate(self, candidate: Candidate, count: int) -> Trial:
        """Compare so many pictures with the plain loop's, time both in turns, judge, and report."""
        looked, base = self.score_samples(candidate, count), self.score_samples(BASELINE_PIPELINE, count)
        folder = self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_sample_images(folder, looked.samples, self.sweep.workspace.directory)
        correct = None if looked.correct is None or base.correct is None else (base.correct, looked.correct)
        latents = (base.samples.latents, looked.samples.latents)
        pictures = compare_pictures(base.samples.pictures, looked.samples.pictures, latents, correct, files)
        outcome = compare_latency(self.timer(BASELINE_PIPELINE), self.timer(candidate), _SHORT_BUDGET)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=outcome.candidate,
            ratio=outcome.ratio,
            peak_bytes=self.peaks[self._process_key(candidate)],
        )
        trial = judge_trial(trial, self.sweep.report.bounds)
        self.sweep.add_trial(trial)
        return trial

    def measure_speedup(self, candidate: Candidate) -> Ratio:
        """How many times as fast it is as the plain walk on the same networks, from a few pictures."""
        return compare_latency(self.timer(CHOSEN_PIPELINE), self.timer(candidate), _SHORT_BUDGET).ratio

    def timer(self, candidate: Candidate) -> Callable[[int], float]:
        """The candidate as `race` takes it: seconds of so many pictures."""
        subject, request = self._process(candidate), self._first_request(candidate)
        return lambda calls: sum(
            float(subject.call("time_picture", request, timeout=self.sweep.timeout)) for _ in range(calls)
        )

    def _start(self, process: CandidateProcess) -> None:
        candidate = process.task.candidate
        self.stack.callback(process.kill)
        process.start()
        try:
            process.call("time_picture", self._first_request(candidate), timeout=self.sweep.timeout)
        except CandidateError:
            process.kill()
            raise
        self.processes[candidate.key] = process
        self.peaks[candidate.key] = process.peak_bytes

    def _generate_and_score(self, candidate: Candidate, begin: int, count: int) -> ScoredSamples:
        if not has_oracle(self.manifest):
            return ScoredSamples(
                self._generate(candidate, comparison_requests(self.manifest, self.sweep.requests)), None
            )
        from stillhouse.shapes.oracle import score_picture

        described = held_out_captions(count)[begin:]
        drawn = self._generate(candidate, [request for _, request in described])
        pairs = zip(drawn.pictures, described, strict=True)
        return ScoredSamples(drawn, tuple(bool(score_picture(picture, one).all_correct) for picture, (one, _) in pairs))

    def _generate(self, candidate: Candidate, requests: Sequence[ImageRequest]) -> CandidateSamples:
        subject = self._process(candidate)
        subject.call(
            "generate", [_variant_request(candidate, request) for request in requests], timeout=self.sweep.timeout
        )
        return read_candidate_samples(subject.folder)

    def _first_request(self, candidate: Candidate) -> dict[str, object]:
        return _variant_request(candidate, comparison_requests(self.manifest, self.sweep.requests)[0])

    def _process(self, candidate: Candidate) -> CandidateProcess:
        return self.processes[self._process_key(candidate)]

    def _process_key(self, candidate: Candidate) -> str:
        return CHOSEN_PIPELINE.key if candidate.recipe == CHOSEN_PIPELINE.recipe else candidate.key

    def _folder(self, candidate: Candidate) -> Path:
        return self.folder / candidate.key


def _variant_request(candidate: Candidate, request: ImageRequest) -> dict[str, object]:
    """The request as the candidate walks it, as JSON."""
    return request_to_json(replace(request, **request_fields(candidate.options)))  # type: ignore[arg-type]
