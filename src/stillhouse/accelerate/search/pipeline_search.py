"""Search of sampling options: sampler, number of steps, guidance interval and feature caching.

Whole pipelines of the chosen networks are run with different options, and their pictures and speed are compared with
the unmodified f32 pipeline. Options are first checked on few pictures (screening), then on more pictures (in full).
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
"""Seconds of one picture above which whole pictures are not compared, because the search generates hundreds of them."""
_MAX_SCREENED = 8
"""Maximum number of combinations of sampling options that are checked on few pictures, in the order of their cost."""
_FEW_PICTURES = 8
"""Number of pictures on which pipelines with equal sampling options are compared."""
_MAX_FULL_EVALUATIONS = 4
"""Maximum number of combinations of sampling options that are checked on FULL_PICTURES pictures."""
_MIN_SPEEDUP = 1.05
"""Minimum speed-up over the pipeline's own sampling options; slower options are rejected without comparing pictures."""
_FINAL_ROUNDS = 10
_SEARCH_SHARE = 0.92
_FINAL_SHARE = 0.97
"""Share of the time budget before which the last timing of whole pipelines must begin. The search for sampling options
ends earlier, at the share _SEARCH_SHARE.
"""
_MIN_SCREENING_PSNR = 30.0
"""Minimum PSNR in dB of few pictures, relative to the baseline's, for sampling options to be checked on more pictures.
In our measurements no options below this value have kept the share of correct pictures.
"""


def search_pipelines(sweep: SweepState) -> None:
    """Measure whole pipelines: distilled students, the chosen networks, and these with other sampling options.

    Results are added to the sweep's report. If one picture takes too long, all candidates are reported as skipped.
    """
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
    """Return a sentence that one picture takes too long for comparing whole pictures; empty if it does not."""
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
    """State of the search of sampling options.

    An axis is a kind of option, such as the number of steps. A level is one setting of this kind, as values by name of
    the option.

    Args:
        sweep: options, clock and report of `stillhouse accelerate`; measurements are added to the report.
        manifest: manifest of the original pipeline.
        processes: the open pipelines.
        passing_levels: by axis, the levels that passed the check on few pictures.
        secured_level: the level of fewest steps that passed the check on many pictures; empty: none.
        can_cache: whether the chosen denoiser supports feature caching.
    """

    sweep: SweepState
    manifest: Manifest
    processes: PipelineProcesses
    passing_levels: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    secured_level: Mapping[str, str] = field(default_factory=dict)
    can_cache: bool = False

    def open_baseline(self) -> bool:
        """Open and measure the baseline: the f32 pipeline that all other pipelines are compared with.

        Returns:
            True if the pipeline runs.
        """
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
        """Open the pipeline of the chosen networks, and return whether its pictures are accepted.

        If the pictures are not accepted, choose again among the networks whose outputs are almost exact, and check the
        pictures once more.
        """
        if self._matches_baseline():
            return True
        # Each network was chosen on its own, but the pictures that all chosen networks make together violate a bound.
        # The next choice is limited to networks with almost exact outputs (exact_only).
        self.sweep.report = replace(self.sweep.report, exact_only=True)
        return self._matches_baseline()

    def evaluate_students(self) -> None:
        """Measure each distilled student with its own networks and sampling options."""
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
                self.processes.close(candidate)  # frees the student's memory for the pipelines that are opened next

    def coarse_to_fine(self) -> None:
        """Find, by bisection, the fastest setting of each kind of sampling option that passes on few pictures.

        Settings that pass are added to `passing_levels`.
        """
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
        """Check combinations of passing settings cheaper than `secured_level`, cheapest first, until one passes."""
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
        """Time four pipelines in the same rounds, and update their speed-ups in the report.

        The pipelines are the original on onnxruntime and on OpenVINO, and the chosen networks with the original and
        with the best sampling options. A pipeline that is not open is left out.
        """
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
        """Time open pipelines in the same rounds, and update their speed-ups in the report.

        Args:
            candidates: candidates by their key; BASELINE_PIPELINE must be among them.
        """
        seconds = run_interleaved(
            {key: partial(self.processes.timer(candidate), 1) for key, candidate in candidates.items()}, _FINAL_ROUNDS
        )
        for key, timings in seconds.items():
            trial = self.sweep.find_trial(candidates[key])
            if trial is not None:
                self.sweep.add_trial(trial.with_timings(timings, baseline_seconds=seconds[BASELINE_PIPELINE.key]))

    def _matches_baseline(self) -> bool:
        """Open the pipeline of the networks chosen so far, and return whether its pictures are accepted."""
        directory, report = self.sweep.workspace.directory, self.sweep.chosen_networks()
        chosen = chosen_components(directory, report)
        step_cache = make_step_cache(directory, chosen)
        self.can_cache = step_cache is not None
        self._note_components({name: key for name, key in report.chosen.items() if name != PIPELINE})
        if not self.processes.open(CHOSEN_PIPELINE, chosen, chosen_defaults(directory, report), step_cache):
            return False
        return self.processes.evaluate(CHOSEN_PIPELINE, _FEW_PICTURES).status == "accepted"

    def _note_components(self, components: Mapping[str, str]) -> None:
        """Record in the report which networks generate the pictures.

        If the networks have changed, the report loses the measurements of sampling options on the earlier networks.

        Args:
            components: key of the chosen candidate by network.
        """
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
        """Check reduced numbers of steps on FULL_PICTURES pictures, fewest steps first, until one passes.

        Only numbers that passed on few pictures are checked. The number that passes becomes `secured_level`, before
        time is spent on less certain options. Other samplers are then checked with this number on few pictures.
        """
        for level in self.passing_levels.get("steps", [])[::-1]:
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_in_full(variant_candidate(level)):
                self.secured_level = level
                break
        for options in other_samplers(self.secured_level) if self.secured_level else ():
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_screening(options):
                self.passing_levels["steps"].append(options)

    def _passes_screening(self, options: Mapping[str, str]) -> bool:
        """Return whether sampling options are faster than the pipeline's own and pass on few pictures.

        Options without measurements in the report are measured now, and the result is added to the report.

        Args:
            options: changed sampling options by name.
        """
        candidate = variant_candidate(options)
        trial = self.sweep.find_trial(candidate) or self._screen(candidate)
        if trial.pictures is None or trial.status not in ("accepted", "skipped"):
            return False
        # Scoring many pictures takes long. This first check of few pictures therefore requires a high PSNR, except for
        # models whose pictures have no score.
        return trial.pictures.score is None or trial.pictures.psnr >= _MIN_SCREENING_PSNR

    def _screen(self, candidate: Candidate) -> Trial:
        """Measure the speed of a candidate of other sampling options and, if it is faster, compare few pictures.

        Returns:
            the trial (measurements and verdict), which is also added to the report.
        """
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
        """Return whether a candidate of other sampling options is accepted on FULL_PICTURES pictures.

        Measurement stops at half of the pictures where the other half is unlikely to raise the score enough. Without a
        program (oracle) that scores pictures, the verdict on few pictures stands. The result is False if too little
        time is left.
        """
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
        """Return the estimated seconds to generate the pictures still missing for a check of FULL_PICTURES pictures.

        The missing pictures of the candidate and those of the baseline are counted.
        """
        seconds = 0.0
        for pipeline in (BASELINE_PIPELINE, candidate):
            trial, scored = self.sweep.find_trial(pipeline), self.processes.scored.get(pipeline.key)
            if trial and trial.seconds:
                seconds += (FULL_PICTURES - (len(scored.samples.pictures) if scored else 0)) * trial.seconds.median
        return seconds

    def _cannot_recover(self, candidate: Candidate, count: int) -> bool:
        """Return whether a candidate's score on `count` pictures is so low that more pictures are unlikely to help.

        The score is the share of pictures that a program (oracle) finds correct, and its gain is the candidate's score
        minus the baseline's. The result is True where the value halfway between the mean gain and the upper end of its
        95 % interval violates the bound, and False where there is no such program or no bound. Missing pictures are
        generated.
        """
        baseline, actual = (
            self.processes.score_samples(pipeline, count).correct for pipeline in (BASELINE_PIPELINE, candidate)
        )
        drop = self.sweep.report.bounds.max_score_drop
        if baseline is None or actual is None or drop is None:
            return False
        mean, _, high = paired_score_gain(baseline, actual)
        return 100 * (mean + high) / 2 < -drop
