"""End-to-end search: run whole pipelines with the chosen components, then vary how they sample.

Sampler, steps, guidance interval and feature caching are varied. Every variant is compared with the unmodified f32
pipeline: it is screened with a few pictures, and if it passes, evaluated in full with more pictures.
"""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from stillhouse.accelerate.calibration.prompts import has_oracle, is_heavy
from stillhouse.accelerate.evaluation.accuracy import FULL_PICTURES, SCREENING_PICTURES, paired_score_gain
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.search.pipeline_processes import (
    BASELINE_PIPELINE,
    CHOSEN_PIPELINE,
    OPENVINO_PIPELINE,
    PipelineProcesses,
)
from stillhouse.accelerate.search.sampling_variants import (
    combine_levels,
    list_search_axes,
    other_samplers,
    variant_candidate,
    variant_cost,
)
from stillhouse.accelerate.search.students import student_candidate
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, make_step_cache
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.accelerate.state import SweepState
from stillhouse.accelerate.workspace import f32_components, original_manifest
from stillhouse.measure.clock import run_interleaved
from stillhouse.pipelines.manifest import TRIALS, Manifest

MAX_PICTURE_SECONDS = 60.0
"""Seconds of one picture above which whole pictures are not compared, because the search generates hundreds."""
_MAX_SCREENED = 8
"""Maximum number of combinations that are screened, starting with the cheapest."""
_FEW_PICTURES = 8
"""Number of pictures on which pipelines with the same sampling are compared."""
_MAX_FULL_EVALUATIONS = 4
"""Maximum number of combinations that are evaluated in full."""
_MIN_SPEEDUP = 1.05
"""Speed-up over the pipeline's own sampling that a variant needs to be evaluated further."""
_FINAL_ROUNDS = 10
_SEARCH_SHARE = 0.92
_FINAL_SHARE = 0.97
"""Shares of the time budget: the search ends before the first, and the last comparison starts before the second."""
_MIN_SCREENING_PSNR = 30.0
"""PSNR in dB, relative to the baseline's pictures. A variant below this value is not evaluated in full, because in our
measurements no such variant has kept its score.
"""


def search_pipelines(sweep: SweepState) -> None:
    """Evaluate whole pipelines; every trial is added to the sweep's report."""
    manifest = original_manifest(sweep.workspace.directory)
    if reason := _skip_reason(manifest, sweep.report):
        for axis in list_search_axes(manifest, can_cache=False):
            for level in axis.levels:
                sweep.add_trial(Trial(variant_candidate(level), "skipped", reason))
        for candidate in map(student_candidate, sweep.options.students):
            if not sweep.find_trial(candidate):
                sweep.add_trial(Trial(candidate, "skipped", reason))
        return
    with ExitStack() as stack:
        search = _PipelineSearch(
            sweep, manifest, PipelineProcesses(sweep, manifest, sweep.workspace.directory / TRIALS / PIPELINE, stack)
        )
        try:
            if not search.open_baseline():
                return
            search.evaluate_students()
            if search.open_chosen():
                search.coarse_to_fine()
                search.search_combinations()
                search.run_final()
        except CandidateError as failure:
            warnings.warn(f"the end-to-end search ended early: {failure}", stacklevel=2)


def _skip_reason(manifest: Manifest, report: Report) -> str:
    """Return why whole pictures are not compared; empty where pictures are compared."""
    best = best_trial(report.trials_of("denoiser"), "latency")
    if best is None or best.seconds is None:
        if not is_heavy(manifest):
            return ""
        return "one picture may take minutes on this machine, and the denoiser was not measured"
    seconds = variant_cost(manifest, {}) * best.seconds.median / best.rows
    if seconds <= MAX_PICTURE_SECONDS:
        return ""
    return f"one picture takes {seconds / 60:.0f} min on this machine, so whole pictures are not compared"


@dataclass(slots=True)
class _PipelineSearch:
    """State of the search.

    Args:
        sweep: receives the trials.
        manifest: manifest of the original pipeline.
        processes: the open pipelines.
        passing_levels: by axis, the levels that passed screening.
        secured_level: the level of the axis of fewer steps that passed a full evaluation; empty: none.
        can_cache: whether the chosen denoiser supports feature caching.
    """

    sweep: SweepState
    manifest: Manifest
    processes: PipelineProcesses
    passing_levels: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    secured_level: Mapping[str, str] = field(default_factory=dict)
    can_cache: bool = False

    def open_baseline(self) -> bool:
        """Open and evaluate the f32 pipeline that all others are compared with; return whether it runs."""
        if not self.processes.open(
            BASELINE_PIPELINE, f32_components(self.sweep.workspace.directory), self.manifest.defaults
        ):
            return False
        self.sweep.report = replace(
            self.sweep.report, baselines={**self.sweep.report.baselines, PIPELINE: BASELINE_PIPELINE.key}
        )
        self.processes.evaluate(BASELINE_PIPELINE, _FEW_PICTURES)
        return True

    def open_chosen(self) -> bool:
        """Open the chosen components; return whether their pictures match the baseline's."""
        if self._matches_baseline():
            return True
        # Each component satisfied the bounds, but all together did not: restrict the choice to exact components.
        self.sweep.report = replace(self.sweep.report, exact_only=True)
        return self._matches_baseline()

    def evaluate_students(self) -> None:
        """Evaluate each distilled student with its own sampling and components."""
        for number, name in enumerate(self.sweep.options.students):
            self.sweep.on_progress("pictures: students", number, len(self.sweep.options.students))
            candidate = student_candidate(name)
            if self.sweep.find_trial(candidate):
                continue
            if self.sweep.seconds_left(_SEARCH_SHARE) <= 0:
                self.sweep.add_trial(Trial(candidate, "skipped", BUDGET_ENDED))
            elif self.processes.open_student(candidate):
                try:
                    if self.processes.evaluate(candidate, SCREENING_PICTURES).status == "skipped":
                        self._passes_in_full(candidate)
                    self._time_together({pipeline.key: pipeline for pipeline in (BASELINE_PIPELINE, candidate)})
                except CandidateError as failure:
                    self.sweep.add_trial(Trial(candidate, "failed", str(failure)))
                self.processes.close(candidate)  # other candidates need its memory

    def coarse_to_fine(self) -> None:
        """Find the most aggressive level of each axis that passes screening, by bisection."""
        for axis in list_search_axes(self.manifest, can_cache=self.can_cache):
            low, high = 0, len(axis.levels)
            while low < high and self.sweep.seconds_left(_SEARCH_SHARE) > 0:
                middle = (low + high) // 2
                self.sweep.on_progress(f"pictures: {axis.name}", middle, len(axis.levels))
                if self._passes_screening(axis.levels[middle]):
                    self.passing_levels.setdefault(axis.name, []).append(axis.levels[middle])
                    low = middle + 1
                else:
                    high = middle
            if axis.name == "steps":
                self._secure_fewer_steps()

    def search_combinations(self) -> None:
        """Evaluate combinations that cost less than `secured_level`, cheapest first, until one passes in full."""
        secured_cost = variant_cost(self.manifest, self.secured_level)
        combinations = [
            options
            for options in combine_levels(self.passing_levels)
            if variant_cost(self.manifest, options) < secured_cost
        ]
        combinations.sort(key=lambda options: variant_cost(self.manifest, options))
        evaluated = 0
        for options in combinations[:_MAX_SCREENED]:
            if self.sweep.seconds_left(_SEARCH_SHARE) <= 0 or evaluated == _MAX_FULL_EVALUATIONS:
                break
            self.sweep.on_progress("pictures: combinations", evaluated, _MAX_FULL_EVALUATIONS)
            if not self._passes_screening(options):
                continue
            evaluated += 1
            if self._passes_in_full(variant_candidate(options)):
                return

    def run_final(self) -> None:
        """Time the baseline pipelines, the chosen components and their fastest variant in the same rounds."""
        components = f32_components(self.sweep.workspace.directory).items()
        openvino_components = {name: replace(item, backend="openvino", precision="auto") for name, item in components}
        if self.sweep.seconds_left(_FINAL_SHARE) > 0 and self.processes.open(
            OPENVINO_PIPELINE, openvino_components, self.manifest.defaults
        ):
            self.processes.evaluate(OPENVINO_PIPELINE, _FEW_PICTURES)
        best = best_trial(
            [item for item in self.sweep.report.trials_of(PIPELINE) if item.candidate.recipe == "sampling"], "latency"
        )
        finalists = {
            item.key: item
            for item in (BASELINE_PIPELINE, OPENVINO_PIPELINE, CHOSEN_PIPELINE)
            if self.processes.is_open(item)
        }
        if best is not None:
            finalists[best.candidate.key] = best.candidate
        self.sweep.on_progress("pictures: final", 0, 1)
        self._time_together(finalists)

    def _time_together(self, candidates: Mapping[str, Candidate]) -> None:
        """Time candidates, given by key, in the same rounds. The baseline pipeline must be among the candidates."""
        seconds = run_interleaved(
            {key: partial(self.processes.timer(candidate), 1) for key, candidate in candidates.items()}, _FINAL_ROUNDS
        )
        for key, timings in seconds.items():
            trial = self.sweep.find_trial(candidates[key])
            if trial is not None:
                self.sweep.add_trial(trial.with_timings(timings, baseline_seconds=seconds[BASELINE_PIPELINE.key]))

    def _matches_baseline(self) -> bool:
        """Open the currently chosen components; return whether their pictures are accepted."""
        directory, report = self.sweep.workspace.directory, self.sweep.chosen_report()
        chosen = chosen_components(directory, report)
        step_cache = make_step_cache(directory, chosen)
        self.can_cache = step_cache is not None
        self._note_components({name: key for name, key in report.chosen.items() if name != PIPELINE})
        if not self.processes.open(CHOSEN_PIPELINE, chosen, chosen_defaults(directory, report), step_cache):
            return False
        return self.processes.evaluate(CHOSEN_PIPELINE, _FEW_PICTURES).status == "accepted"

    def _note_components(self, components: Mapping[str, str]) -> None:
        """Record which components generate the pictures; drop trials of sampling variants on other components."""
        report = self.sweep.report
        trials = report.trials
        if report.evaluated_with != components:
            trials = tuple(
                trial
                for trial in trials
                if trial.candidate.component != PIPELINE or trial.candidate.recipe != "sampling"
            )
        self.sweep.report = replace(report, trials=trials, evaluated_with=components)

    def _secure_fewer_steps(self) -> None:
        """Evaluate the screened step counts in full, fewest first, before time is spent on less certain variants."""
        for level in self.passing_levels.get("steps", [])[::-1]:
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_in_full(variant_candidate(level)):
                self.secured_level = level
                break
        for options in other_samplers(self.secured_level) if self.secured_level else ():
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_screening(options):
                self.passing_levels["steps"].append(options)

    def _passes_screening(self, options: Mapping[str, str]) -> bool:
        """Return whether a variant is faster and passes on a few pictures; its trial is in the report."""
        candidate = variant_candidate(options)
        trial = self.sweep.find_trial(candidate) or self._screen(candidate)
        if trial.pictures is None or trial.status not in ("accepted", "skipped"):
            return False
        # A full evaluation with an oracle is expensive; skip variants that are unlikely to pass it.
        return trial.pictures.score is None or trial.pictures.psnr >= _MIN_SCREENING_PSNR

    def _screen(self, candidate: Candidate) -> Trial:
        """Screen a candidate and return its trial."""
        try:
            self.processes.reopen_dead()
            gain = self.processes.measure_speedup(candidate).value
            if gain >= _MIN_SPEEDUP:
                return self.processes.evaluate(candidate, SCREENING_PICTURES)
            reason = f"no speed-up: {gain:.2f} times the speed of the pipeline's own sampling"
            trial = Trial(candidate, "rejected", reason)
        except CandidateError as failure:
            trial = Trial(candidate, "failed", str(failure))
        self.sweep.add_trial(trial)
        return trial

    def _passes_in_full(self, candidate: Candidate) -> bool:
        """Return whether a candidate passes on FULL_PICTURES pictures, stopping halfway where it cannot pass."""
        if not has_oracle(self.manifest):
            return (self.sweep.find_trial(candidate) or Trial(candidate, "failed")).status == "accepted"
        if self.sweep.seconds_left(_SEARCH_SHARE) < self._seconds_needed(candidate):
            return False
        try:
            self.processes.reopen_dead()
            count = FULL_PICTURES // 2 if self._cannot_recover(candidate, FULL_PICTURES // 2) else FULL_PICTURES
            return self.processes.evaluate(candidate, count).status == "accepted"
        except CandidateError as failure:
            self.sweep.add_trial(Trial(candidate, "failed", str(failure)))
            return False

    def _seconds_needed(self, candidate: Candidate) -> float:
        """Return the seconds to generate the missing pictures of a full evaluation."""
        seconds = 0.0
        for pipeline in (BASELINE_PIPELINE, candidate):
            trial, scored = self.sweep.find_trial(pipeline), self.processes.scored.get(pipeline.key)
            if trial and trial.seconds:
                seconds += (FULL_PICTURES - (len(scored.samples.pictures) if scored else 0)) * trial.seconds.median
        return seconds

    def _cannot_recover(self, candidate: Candidate, count: int) -> bool:
        """Return whether more pictures are unlikely to raise the score above the bound.

        This holds where the midpoint of the mean score gain and its interval's upper end violates the bound.
        """
        baseline, actual = (
            self.processes.score_samples(pipeline, count).correct for pipeline in (BASELINE_PIPELINE, candidate)
        )
        drop = self.sweep.report.bounds.max_score_drop
        if baseline is None or actual is None or drop is None:
            return False
        mean, _, high = paired_score_gain(baseline, actual)
        return 100 * (mean + high) / 2 < -drop
