"""Processes in which whole pipelines are open at the same time, to generate, score, compare and time pictures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillhouse.accelerate.calibration.prompts import comparison_requests, has_oracle, held_out_captions, is_heavy
from stillhouse.accelerate.evaluation.accuracy import compare_pictures, judge_trial
from stillhouse.accelerate.evaluation.candidate_messages import Generate, RecordTrajectory, TimePictures
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.latency import LatencyComparison, TimingBudget, compare_latency
from stillhouse.accelerate.evaluation.sample_images import (
    SAMPLE_COUNT,
    CandidateSamples,
    read_candidate_samples,
    write_sample_images,
)
from stillhouse.accelerate.evaluation.scored_samples import SCORED_FILE, ScoredSamples, read_scored, write_scored
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.evaluation.trajectory import RecordedTrajectory, read_trajectory
from stillhouse.accelerate.records.candidate import DISTILLED, PIPELINE, Candidate
from stillhouse.accelerate.records.report import relative_path
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import request_fields, split_options, variant_candidate
from stillhouse.accelerate.search.students import STUDENTS_FOLDER
from stillhouse.accelerate.state import SweepState
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import paired_ratio, summarise
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache

BASELINE_PIPELINE = Candidate(PIPELINE, "onnxruntime", "baseline")
"""The original pipeline in float32 as onnxruntime runs it by default, with its own sampling options. Speed-ups of whole
pipelines refer to this candidate.
"""
TUNED_PIPELINE = Candidate(PIPELINE, "onnxruntime", "baseline", options={"spinning": "0"})
"""The original pipeline on onnxruntime in float32, with threads that sleep while they wait, as a second reference."""
OPENVINO_PIPELINE = Candidate(PIPELINE, "openvino", "baseline", "auto")
"""The original pipeline on OpenVINO in its default precision, with its own sampling options, as a third reference."""
CHOSEN_PIPELINE = variant_candidate({})
"""The pipeline of the networks that were chosen from the measured candidates, with its own sampling options."""
SLOW_PICTURE_SECONDS = 10.0
"""Seconds of one picture of the baseline from which no picture is generated only to be timed: the seconds of the
pictures that are compared are used."""
_SHORT_BUDGET = TimingBudget(min_rounds=3, max_rounds=3)
_BATCH = 8
"""Number of pictures that are generated at the same time for scoring. The first `SAMPLE_COUNT` pictures are generated
one at a time, as a user does, so that a network that is right only in batches is found."""
_MIN_SLOW_ROUNDS = 2


def process_candidate(candidate: Candidate) -> Candidate:
    """Return the pipeline candidate under which the process of a candidate is opened.

    Candidates that differ only in sampling options share the process of their networks. Feature caching needs a process
    of its own, because it splits the denoiser.
    """
    if candidate.recipe != CHOSEN_PIPELINE.recipe:
        return candidate
    sampling, names = split_options(candidate.options)
    return variant_candidate({**names, **({"cache_interval": "2"} if "cache_interval" in sampling else {})})


class PipelineProcesses:
    """Open pipelines, each in a process of its own, with methods that generate, compare and time their pictures.

    A pipeline is found by its candidate: networks, a reference pipeline or a distilled student. Candidates that differ
    only in sampling options run in the same process, see `process_candidate`.

    Args:
        sweep: options and report; measurements are added to the report.
        manifest: manifest of the original pipeline.
        folder: directory in which each candidate gets a folder for its measurements.
        stack: exit stack to which the processes are added; closing the stack kills them.
        keeps_scores: whether scored pictures of BASELINE_PIPELINE are kept in a file, so that the next run of a sweep
            does not generate them again.
    """

    def __init__(
        self, sweep: SweepState, manifest: Manifest, folder: Path, stack: ExitStack, keeps_scores: bool = False
    ) -> None:
        self.sweep, self.manifest, self.folder, self.stack = sweep, manifest, folder.resolve(), stack
        self.keeps_scores = keeps_scores
        self.processes: dict[str, CandidateProcess] = {}
        self.peaks: dict[str, int] = {}
        self.scored: dict[str, ScoredSamples] = {}
        self.picture_seconds: dict[str, list[float]] = {}
        self.timings: dict[str, LatencyComparison] = {}

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
        if candidate == CHOSEN_PIPELINE:  # other networks may be chosen now
            for measured in (self.scored, self.picture_seconds, self.timings):
                measured.pop(candidate.key, None)
        other_processes = tuple(self.processes.values())
        try:
            self._start(CandidateProcess(task, self.sweep.memory_limit, other_processes))
        except CandidateError as failure:
            log = relative_path(folder / LOG_FILE, self.sweep.workspace.directory)
            self.sweep.add_trial(Trial(candidate, "failed", str(failure), log=log))
            return False
        return True

    def close(self, candidate: Candidate) -> None:
        """Kill a candidate's process if it is open. Its pictures and their scores are kept."""
        process = self.processes.pop(process_candidate(candidate).key, None)
        if process:
            process.kill()

    def make_room(self, needed: int, keep: Sequence[Candidate]) -> None:
        """Kill processes until a new one fits into the memory limit; those opened first are killed first.

        Args:
            needed: estimated bytes of the new process.
            keep: candidates whose processes are not killed.
        """
        kept = {process_candidate(candidate).key for candidate in keep}
        for key in [key for key in self.processes if key not in kept]:
            used = sum(process.memory_bytes for process in self.processes.values())
            if self.sweep.memory_limit is None or used + needed <= self.sweep.memory_limit:
                return
            self.processes.pop(key).kill()

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
        return process_candidate(candidate).key in self.processes

    def score_samples(self, candidate: Candidate, count: int) -> ScoredSamples:
        """Return the first `count` pictures of a candidate, with verdicts of a program (oracle); generate missing ones.

        For a model without such a program, the pictures are those of the comparison requests, which may be fewer.
        """
        file = self._folder(candidate) / SCORED_FILE
        is_kept = self.keeps_scores and self._has_oracle and candidate == BASELINE_PIPELINE
        if is_kept and candidate.key not in self.scored and file.is_file():
            self.scored[candidate.key] = read_scored(file)
        stored = self.scored.get(candidate.key)
        stored_count = self.scored_count(candidate)
        wanted = count if self._has_oracle else min(count, len(self._comparison_requests()))
        if stored is None or stored_count < wanted:
            more = self._generate_and_score(candidate, stored_count, wanted)
            self.scored[candidate.key] = stored.concatenate(more) if stored else more
            if is_kept:
                write_scored(file, self.scored[candidate.key])
        return self.scored[candidate.key].head(wanted)

    def scored_count(self, candidate: Candidate) -> int:
        """Return how many pictures of a candidate have been generated for comparison."""
        stored = self.scored.get(candidate.key)
        return len(stored.samples.pictures) if stored else 0

    def seconds_per_picture(self, candidate: Candidate) -> float | None:
        """Return the seconds that one more picture of a candidate takes for comparison; None: none was generated."""
        seconds = self.picture_seconds.get(candidate.key)
        return seconds[-1] if seconds else None

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
        strict = None if scored.strict is None or base.strict is None else (base.strict, scored.strict)
        latents = (base.samples.latents, scored.samples.latents)
        pictures = compare_pictures(
            base.samples.pictures, scored.samples.pictures, latents, correct, files, strict=strict
        )
        comparison = self.compare_speed(candidate)
        trial = Trial(
            candidate,
            "accepted",
            pictures=pictures,
            seconds=comparison.candidate,
            baseline_seconds=comparison.baseline,
            ratio=comparison.ratio,
            peak_bytes=self.peaks[process_candidate(candidate).key],
        )
        trial = judge_trial(trial, self.sweep.report.bounds)
        self.sweep.add_trial(trial)
        return trial

    def compare_speed(self, candidate: Candidate) -> LatencyComparison:
        """Return the speed of a candidate next to BASELINE_PIPELINE, measured once.

        Both are timed in the same three rounds. Where a picture takes long (SLOW_PICTURE_SECONDS), the seconds of the
        pictures that were generated for comparison are used, each beside the baseline's of the same request.
        """
        if candidate.key not in self.timings:
            self.timings[candidate.key] = (
                self._compare_generated(candidate)
                if self.is_slow
                else compare_latency(self.timer(BASELINE_PIPELINE), self.timer(candidate), _SHORT_BUDGET)
            )
        return self.timings[candidate.key]

    @property
    def is_slow(self) -> bool:
        """Return whether a picture of the baseline takes SLOW_PICTURE_SECONDS or more."""
        return (self.seconds_per_picture(BASELINE_PIPELINE) or 0.0) >= SLOW_PICTURE_SECONDS

    def timer(self, candidate: Candidate) -> Callable[[int], float]:
        """Return a function that generates a number of pictures with a candidate, and returns their total seconds."""
        process, request = self._process(candidate), self._first_request(candidate)
        return lambda calls: process.call(TimePictures(request, calls), timeout=calls * self.sweep.timeout)

    def record_trajectories(self, candidate: Candidate, count: int) -> list[RecordedTrajectory]:
        """Return the trajectories of the first `count` comparison requests with a candidate's sampling options."""
        process, recorded = self._process(candidate), []
        for number, request in enumerate(self._comparison_requests()[:count]):
            path = process.folder / f"trajectory-{number}.npz"
            process.call(RecordTrajectory(_variant_request(candidate, request), str(path)), timeout=self.sweep.timeout)
            recorded.append(read_trajectory(path))
            path.unlink()
        return recorded

    def _compare_generated(self, candidate: Candidate) -> LatencyComparison:
        baseline, own = self.picture_seconds[BASELINE_PIPELINE.key], self.picture_seconds[candidate.key]
        while len(own) < _MIN_SLOW_ROUNDS:
            own.append(self.timer(candidate)(1))
        before = [baseline[number % len(baseline)] for number in range(len(own))]
        return LatencyComparison(summarise(before), summarise(own), paired_ratio(before, own))

    def _start(self, process: CandidateProcess) -> None:
        candidate = process.task.candidate
        self.stack.callback(process.kill)
        process.start()
        try:
            process.call(TimePictures(self._opening_request(candidate), 1), timeout=self.sweep.timeout)
        except CandidateError:
            process.kill()
            raise
        self.processes[candidate.key] = process
        self.peaks[candidate.key] = process.peak_bytes

    def _generate_and_score(self, candidate: Candidate, begin: int, count: int) -> ScoredSamples:
        if not self._has_oracle:
            return ScoredSamples(self._generate(candidate, self._comparison_requests()[begin:count]), None)
        from stillhouse.shapes.oracle import score_picture

        captions = held_out_captions(count)[begin:]
        alone = max(0, min(count, SAMPLE_COUNT) - begin)
        parts = [
            self._generate(candidate, [request for _, request in part], batch)
            for part, batch in ((captions[:alone], 1), (captions[alone:], _BATCH))
            if part
        ]
        samples = CandidateSamples(
            np.concatenate([part.pictures for part in parts]), np.concatenate([part.latents for part in parts])
        )
        scores = [
            score_picture(picture, description)
            for picture, (description, _) in zip(samples.pictures, captions, strict=True)
        ]
        return ScoredSamples(
            samples,
            tuple(bool(score.all_correct) for score in scores),
            tuple(float(score.strict) == 1.0 for score in scores),
        )

    def _generate(self, candidate: Candidate, requests: Sequence[ImageRequest], batch: int = 1) -> CandidateSamples:
        """Generate pictures in batches, and remember their seconds: of each picture where the batch is 1, else mean."""
        process, seconds = self._process(candidate), self.picture_seconds.setdefault(candidate.key, [])
        parts = []
        step = 1 if batch == 1 else len(requests)
        for start in range(0, len(requests), step):
            variants = tuple(_variant_request(candidate, request) for request in requests[start : start + step])
            total = process.call(Generate(variants, batch), timeout=self.sweep.timeout)
            seconds.append(total / len(variants))
            parts.append(read_candidate_samples(process.folder))
        return CandidateSamples(
            np.concatenate([part.pictures for part in parts]), np.concatenate([part.latents for part in parts])
        )

    @property
    def _has_oracle(self) -> bool:
        return has_oracle(self.manifest)

    def _comparison_requests(self) -> list[ImageRequest]:
        return comparison_requests(self.manifest, self.sweep.options.requests)

    def _first_request(self, candidate: Candidate) -> ImageRequest:
        return _variant_request(candidate, self._comparison_requests()[0])

    def _opening_request(self, candidate: Candidate) -> ImageRequest:
        """Return the request whose picture opens all networks: of one step where steps take long and may be changed."""
        first = self._first_request(candidate)
        is_fixed = candidate.recipe == DISTILLED or (self.manifest.distilled and self.manifest.distilled.timesteps)
        return replace(first, steps=1) if is_heavy(self.manifest) and not is_fixed else first

    def _process(self, candidate: Candidate) -> CandidateProcess:
        return self.processes[process_candidate(candidate).key]

    def _folder(self, candidate: Candidate) -> Path:
        return self.folder / candidate.key


def _variant_request(candidate: Candidate, request: ImageRequest) -> ImageRequest:
    """Return a copy of an image request with the sampling options of a candidate."""
    return replace(request, **request_fields(candidate.options))  # type: ignore[arg-type]
