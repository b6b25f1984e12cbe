"""Processes in which whole pipelines are open at the same time, to generate, score, compare and time pictures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stillhouse.accelerate.calibration.prompts import comparison_requests, has_oracle, held_out_captions
from stillhouse.accelerate.evaluation.accuracy import compare_pictures, judge_trial
from stillhouse.accelerate.evaluation.candidate_messages import Generate, TimePictures
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.latency import TimingBudget, compare_latency
from stillhouse.accelerate.evaluation.sample_images import CandidateSamples, read_candidate_samples, write_sample_images
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import request_fields, variant_candidate
from stillhouse.accelerate.search.students import STUDENTS_FOLDER
from stillhouse.accelerate.state import SweepState
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache

BASELINE_PIPELINE = Candidate(PIPELINE, "onnxruntime", "baseline")
"""The original pipeline on onnxruntime in float32, with its own sampling options. Speed-ups of whole pipelines refer to
this candidate.
"""
OPENVINO_PIPELINE = Candidate(PIPELINE, "openvino", "baseline", "auto")
"""The original pipeline on OpenVINO in its default precision, with its own sampling options, as a second reference."""
CHOSEN_PIPELINE = variant_candidate({})
"""The pipeline of the networks that were chosen from the measured candidates, with its own sampling options."""
_SHORT_BUDGET = TimingBudget(min_rounds=3, max_rounds=3)


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Pictures of one pipeline candidate.

    Args:
        samples: the pictures and their final latents.
        correct: for each picture, whether a program (oracle) finds that it shows what the prompt asks for; None: there
            is no such program for the model.
    """

    samples: CandidateSamples
    correct: tuple[bool, ...] | None

    def head(self, count: int) -> "ScoredSamples":
        """Return the first `count` pictures with their latents and verdicts; all pictures where there are fewer."""
        samples = CandidateSamples(self.samples.pictures[:count], self.samples.latents[:count])
        return ScoredSamples(samples, None if self.correct is None else self.correct[:count])

    def concatenate(self, more: "ScoredSamples") -> "ScoredSamples":
        """Return these pictures followed by the pictures of `more`, which are of the same candidate."""
        pictures = np.concatenate([self.samples.pictures, more.samples.pictures])
        latents = np.concatenate([self.samples.latents, more.samples.latents])
        correct = None if self.correct is None or more.correct is None else self.correct + more.correct
        return ScoredSamples(CandidateSamples(pictures, latents), correct)


class PipelineProcesses:
    """Open pipelines, each in a process of its own, with methods that generate, compare and time their pictures.

    A pipeline is found by its candidate: the chosen networks, a reference pipeline or a distilled student. Candidates
    that differ only in sampling options run in the same process, that of CHOSEN_PIPELINE.

    Args:
        sweep: options and report; measurements are added to the report.
        manifest: manifest of the original pipeline.
        folder: directory in which each candidate gets a folder for its measurements.
        stack: exit stack to which the processes are added; closing the stack kills them.
    """

    def __init__(self, sweep: SweepState, manifest: Manifest, folder: Path, stack: ExitStack) -> None:
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
        """Open a pipeline in a new process, generate one picture, and return whether the pipeline is open.

        A failure is added to the report. All settings are arguments, because the manifest in the directory may contain
        the choice of an earlier sweep.

        Args:
            candidate: the pipeline candidate under which the process is found again.
            components: networks of the pipeline by name.
            defaults: default settings of the pipeline.
            cache: the two graphs that feature caching (DeepCache) needs: the whole denoiser, and its shallow layers
                alone; None: no feature caching.
        """
        return self._open(candidate, self.sweep.workspace.directory, components, defaults, cache)

    def open_student(self, candidate: Candidate) -> bool:
        """Open a distilled student in a new process and generate one picture. A failure is added to the report.

        Args:
            candidate: candidate of the student, from `students.student_candidate`.

        Returns:
            True if the student is open, False after a failure.
        """
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
            threads=self.sweep.options.threads,
            pipeline=str(directory.resolve()),
            components=components or {},
            defaults=defaults,
            step_cache=cache,
        )
        self.close(candidate)
        other_processes = tuple(self.processes.values())
        try:
            self._start(CandidateProcess(task, self.sweep.memory_limit, other_processes))
        except CandidateError as failure:
            log = relative_path(folder / LOG_FILE, self.sweep.workspace.directory)
            self.sweep.add_trial(Trial(candidate, "failed", str(failure), log=log))
            return False
        return True

    def close(self, candidate: Candidate) -> None:
        """Kill a candidate's process if it is open, and delete stored pictures of the chosen networks.

        Stored pictures are deleted because other networks may be chosen next. Pictures of BASELINE_PIPELINE and
        OPENVINO_PIPELINE, whose networks do not change, are kept, unless the closed candidate is one of these two.
        """
        process = self.processes.pop(candidate.key, None)
        if process:
            process.kill()
            reusable = {BASELINE_PIPELINE.key, OPENVINO_PIPELINE.key} - {candidate.key}
            self.scored = {key: samples for key, samples in self.scored.items() if key in reusable}

    def reopen_dead(self) -> None:
        """Start a new process for each pipeline whose process has died, and generate one picture with it.

        Raises:
            CandidateError: a pipeline cannot be opened.
        """
        for process in list(self.processes.values()):
            if not process.is_alive:
                other_processes = tuple(other for other in self.processes.values() if other is not process)
                self._start(CandidateProcess(process.task, process.memory_limit, other_processes))

    def is_open(self, candidate: Candidate) -> bool:
        """Return whether a process that can generate pictures of the candidate is open."""
        return self._process_key(candidate) in self.processes

    def score_samples(self, candidate: Candidate, count: int) -> ScoredSamples:
        """Return the first `count` pictures of a candidate, with verdicts of a program (oracle); generate missing ones.

        For a model without such a program, the pictures are the first `count` of the comparison requests, which may be
        fewer.
        """
        stored = self.scored.get(candidate.key)
        stored_count = len(stored.samples.pictures) if stored else 0
        if stored is None or (stored_count < count and stored.correct is not None):
            more = self._generate_and_score(candidate, stored_count, count)
            self.scored[candidate.key] = stored.concatenate(more) if stored else more
        return self.scored[candidate.key].head(count)

    def evaluate(self, candidate: Candidate, count: int) -> Trial:
        """Measure a pipeline candidate next to BASELINE_PIPELINE, judge it, and add the result to the report.

        Both pipelines generate pictures of the same prompts and seeds, and are timed in the same rounds. The pictures
        are compared.

        Args:
            candidate: an open candidate.
            count: number of pictures to compare.

        Returns:
            the trial: measurements and verdict.
        """
        scored, base = self.score_samples(candidate, count), self.score_samples(BASELINE_PIPELINE, count)
        folder = self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_sample_images(folder, scored.samples, self.sweep.workspace.directory)
        correct = None if scored.correct is None or base.correct is None else (base.correct, scored.correct)
        latents = (base.samples.latents, scored.samples.latents)
        pictures = compare_pictures(base.samples.pictures, scored.samples.pictures, latents, correct, files)
        comparison = compare_latency(self.timer(BASELINE_PIPELINE), self.timer(candidate), _SHORT_BUDGET)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=comparison.candidate,
            baseline_seconds=comparison.baseline,
            ratio=comparison.ratio,
            peak_bytes=self.peaks[self._process_key(candidate)],
        )
        trial = judge_trial(trial, self.sweep.report.bounds)
        self.sweep.add_trial(trial)
        return trial

    def measure_speedup(self, candidate: Candidate) -> Ratio:
        """Return the speed-up of other sampling options over the pipeline's own ones (CHOSEN_PIPELINE).

        Both sets of options run on the same networks and are timed in three rounds.
        """
        return compare_latency(self.timer(CHOSEN_PIPELINE), self.timer(candidate), _SHORT_BUDGET).ratio

    def timer(self, candidate: Candidate) -> Callable[[int], float]:
        """Return a function that generates a number of pictures with a candidate, and returns their total seconds."""
        process, request = self._process(candidate), self._first_request(candidate)
        return lambda calls: process.call(TimePictures(request, calls), timeout=calls * self.sweep.timeout)

    def _start(self, process: CandidateProcess) -> None:
        candidate = process.task.candidate
        self.stack.callback(process.kill)
        process.start()
        try:
            process.call(TimePictures(self._first_request(candidate), 1), timeout=self.sweep.timeout)
        except CandidateError:
            process.kill()
            raise
        self.processes[candidate.key] = process
        self.peaks[candidate.key] = process.peak_bytes

    def _generate_and_score(self, candidate: Candidate, begin: int, count: int) -> ScoredSamples:
        if not has_oracle(self.manifest):
            return ScoredSamples(
                self._generate(candidate, comparison_requests(self.manifest, self.sweep.options.requests)), None
            )
        from stillhouse.shapes.oracle import score_picture

        captions = held_out_captions(count)[begin:]
        samples = self._generate(candidate, [request for _, request in captions])
        pairs = zip(samples.pictures, captions, strict=True)
        return ScoredSamples(
            samples, tuple(bool(score_picture(picture, description).all_correct) for picture, (description, _) in pairs)
        )

    def _generate(self, candidate: Candidate, requests: Sequence[ImageRequest]) -> CandidateSamples:
        process = self._process(candidate)
        variants = tuple(_variant_request(candidate, request) for request in requests)
        process.call(Generate(variants), timeout=self.sweep.timeout)
        return read_candidate_samples(process.folder)

    def _first_request(self, candidate: Candidate) -> ImageRequest:
        return _variant_request(candidate, comparison_requests(self.manifest, self.sweep.options.requests)[0])

    def _process(self, candidate: Candidate) -> CandidateProcess:
        return self.processes[self._process_key(candidate)]

    def _process_key(self, candidate: Candidate) -> str:
        return CHOSEN_PIPELINE.key if candidate.recipe == CHOSEN_PIPELINE.recipe else candidate.key

    def _folder(self, candidate: Candidate) -> Path:
        return self.folder / candidate.key


def _variant_request(candidate: Candidate, request: ImageRequest) -> ImageRequest:
    """Return a copy of an image request with the sampling options of a candidate."""
    return replace(request, **request_fields(candidate.options))  # type: ignore[arg-type]
