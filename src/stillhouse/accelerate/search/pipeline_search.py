"""Whole pictures: the chosen networks together, then ways to walk with them, all beside the plain loops."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

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
    SweepContext,
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
from stillhouse.accelerate.workspace import f32_components, original_manifest
from stillhouse.measure.clock import run_interleaved
from stillhouse.pipelines.manifest import TRIALS, Manifest

MAX_PICTURE_SECONDS = 60.0
"""Seconds of one picture from which whole pictures are not compared: the search draws hundreds."""
_MAX_SCREENED = 8
"""Combinations that are looked at, from the cheapest."""
_FEW_PICTURES = 8
"""Pictures by which networks are compared whose walk is the same."""
_MAX_FULL_EVALUATIONS = 4
"""Combinations that are drawn in full before the search is content with less."""
_MIN_SPEEDUP = 1.05
"""Of the plain walk's speed, what a way to walk must reach to be gone on with."""
_FINAL_ROUNDS = 10
_SEARCH_SHARE = 0.92
_FINAL_SHARE = 0.97
"""Of a time budget, what may be gone before the final, and before its last comparison."""
_MIN_SCREENING_PSNR = 30.0
"""dB to the plain walk's pictures below which no way to walk was seen to keep its score; it is not drawn in full."""


class SearchContext(SweepContext, Protocol):
    """What the search needs of the sweep that it is a part of."""

    @property
    def students(self) -> Sequence[str]:
        """Names of the students that are candidates."""

    def on_progress(self, what: str, done: float, total: float, /) -> None:
        """Show what goes on, and how far it is."""

    def find_trial(self, candidate: Candidate) -> Trial | None:
        """What was found out of it before."""

    def seconds_left(self, share: float) -> float:
        """Seconds left of the budget's share."""

    def chosen_report(self) -> Report:
        """The report with its choice among what was tried so far."""


def search_pipelines(sweep: SearchContext) -> None:
    """Try whole pictures; every trial goes into the sweep's report."""
    manifest = original_manifest(sweep.workspace.directory)
    if reason := _skip_reason(manifest, sweep.report):
        for ladder in list_search_axes(manifest, can_cache=False):
            for rung in ladder.levels:
                sweep.add_trial(Trial(variant_candidate(rung), "skipped", reason))
        for candidate in map(student_candidate, sweep.students):
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
            warnings.warn(f"the search among whole pictures ended early: {failure}", stacklevel=2)


def _skip_reason(manifest: Manifest, report: Report) -> str:
    """Why whole pictures are not compared; empty where they are."""
    best = best_trial(report.trials_of("unet"), "latency")
    if best is None or best.seconds is None:
        if not is_heavy(manifest):
            return ""
        return "one picture may take minutes on this machine, and its U-Net was not measured"
    seconds = variant_cost(manifest, {}) * best.seconds.median / best.rows
    if seconds <= MAX_PICTURE_SECONDS:
        return ""
    return f"one picture takes {seconds / 60:.0f} min on this machine, so whole pictures are not compared"


@dataclass(slots=True)
class _PipelineSearch:
    """What the search has found so far: rungs that passed roughly, and fewer steps that passed in full."""

    sweep: SearchContext
    manifest: Manifest
    processes: PipelineProcesses
    passing_levels: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    secured_level: Mapping[str, str] = field(default_factory=dict)
    can_cache: bool = False

    def open_baseline(self) -> bool:
        """Open the plain loop, which everything is compared with."""
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
        """Open the chosen networks, and see that they draw what the plain loop draws."""
        if self._matches_baseline():
            return True
        # One by one they kept their bounds: those that draw the very same pictures keep them together, too.
        self.sweep.report = replace(self.sweep.report, exact_only=True)
        return self._matches_baseline()

    def evaluate_students(self) -> None:
        """Students, each with its own walk on its own networks."""
        for number, name in enumerate(self.sweep.students):
            self.sweep.on_progress("pictures: students", number, len(self.sweep.students))
            candidate = student_candidate(name)
            if self.sweep.find_trial(candidate):
                continue
            if self.sweep.seconds_left(_SEARCH_SHARE) <= 0:
                self.sweep.add_trial(Trial(candidate, "skipped", BUDGET_ENDED))
            elif self.processes.open_student(candidate):
                try:
                    if self.processes.evaluate(candidate, SCREENING_PICTURES).status == "skipped":
                        self._passes_in_full(candidate)
                    self._time_together({one.key: one for one in (BASELINE_PIPELINE, candidate)})
                except CandidateError as failure:
                    self.sweep.add_trial(Trial(candidate, "failed", str(failure)))
                self.processes.close(candidate)  # it takes memory, and the others need it

    def coarse_to_fine(self) -> None:
        """On each ladder, the boldest rung that passes roughly, by bisection."""
        for ladder in list_search_axes(self.manifest, can_cache=self.can_cache):
            low, high = 0, len(ladder.levels)
            while low < high and self.sweep.seconds_left(_SEARCH_SHARE) > 0:
                middle = (low + high) // 2
                self.sweep.on_progress(f"pictures: {ladder.name}", middle, len(ladder.levels))
                if self._passes_screening(ladder.levels[middle]):
                    self.passing_levels.setdefault(ladder.name, []).append(ladder.levels[middle])
                    low = middle + 1
                else:
                    high = middle
            if ladder.name == "steps":
                self._secure_fewer_steps()

    def search_combinations(self) -> None:
        """Combinations of what passed that cost less than what is secured, cheapest first, until one passes in full."""
        enough = variant_cost(self.manifest, self.secured_level)
        ways = [
            options for options in combine_levels(self.passing_levels) if variant_cost(self.manifest, options) < enough
        ]
        ways.sort(key=lambda options: variant_cost(self.manifest, options))
        tries = 0
        for options in ways[:_MAX_SCREENED]:
            if self.sweep.seconds_left(_SEARCH_SHARE) <= 0 or tries == _MAX_FULL_EVALUATIONS:
                break
            self.sweep.on_progress("pictures: combinations", tries, _MAX_FULL_EVALUATIONS)
            if not self._passes_screening(options):
                continue
            tries += 1
            if self._passes_in_full(variant_candidate(options)):
                return

    def run_final(self) -> None:
        """The plain loops, the chosen networks and the fastest way to walk with them, timed in the same rounds."""
        networks = f32_components(self.sweep.workspace.directory).items()
        default = {name: replace(one, backend="openvino", precision="auto") for name, one in networks}
        if self.sweep.seconds_left(_FINAL_SHARE) > 0 and self.processes.open(
            OPENVINO_PIPELINE, default, self.manifest.defaults
        ):
            self.processes.evaluate(OPENVINO_PIPELINE, _FEW_PICTURES)
        best = best_trial(
            [one for one in self.sweep.report.trials_of(PIPELINE) if one.candidate.recipe == "sampling"], "latency"
        )
        ways = {
            one.key: one
            for one in (BASELINE_PIPELINE, OPENVINO_PIPELINE, CHOSEN_PIPELINE)
            if self.processes.is_open(one)
        }
        if best is not None:
            ways[best.candidate.key] = best.candidate
        self.sweep.on_progress("pictures: final", 0, 1)
        self._time_together(ways)

    def _time_together(self, candidates: Mapping[str, Candidate]) -> None:
        """Whole pictures of these, by key, in the same rounds; the plain loop is among them."""
        seconds = run_interleaved(
            {key: partial(self.processes.timer(one), 1) for key, one in candidates.items()}, _FINAL_ROUNDS
        )
        for key, taken in seconds.items():
            trial = self.sweep.find_trial(candidates[key])
            if trial is not None:
                self.sweep.add_trial(trial.with_timings(taken, baseline_seconds=seconds[BASELINE_PIPELINE.key]))

    def _matches_baseline(self) -> bool:
        """Open the networks that are chosen now; whether they draw what the plain loop draws."""
        directory, report = self.sweep.workspace.directory, self.sweep.chosen_report()
        chosen = chosen_components(directory, report)
        cache = make_step_cache(directory, chosen)
        self.can_cache = cache is not None
        self._note_networks({name: key for name, key in report.chosen.items() if name != PIPELINE})
        if not self.processes.open(CHOSEN_PIPELINE, chosen, chosen_defaults(directory, report), cache):
            return False
        return self.processes.evaluate(CHOSEN_PIPELINE, _FEW_PICTURES).status == "accepted"

    def _note_networks(self, networks: Mapping[str, str]) -> None:
        """Note which networks draw; what an earlier run drew with others says nothing of them."""
        report = self.sweep.report
        kept = report.trials
        if report.evaluated_with != networks:
            kept = tuple(
                one for one in kept if one.candidate.component != PIPELINE or one.candidate.recipe != "sampling"
            )
        self.sweep.report = replace(report, trials=kept, evaluated_with=networks)

    def _secure_fewer_steps(self) -> None:
        """Of the rungs of steps the boldest that passes in full, before time goes into what may gain more."""
        for rung in self.passing_levels.get("steps", [])[::-1]:
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_in_full(variant_candidate(rung)):
                self.secured_level = rung
                break
        for options in other_samplers(self.secured_level) if self.secured_level else ():
            if self.sweep.seconds_left(_SEARCH_SHARE) > 0 and self._passes_screening(options):
                self.passing_levels["steps"].append(options)

    def _passes_screening(self, options: Mapping[str, str]) -> bool:
        """Whether a way to walk pays and passes roughly; its trial is in the report, to be looked at again."""
        candidate = variant_candidate(options)
        trial = self.sweep.find_trial(candidate) or self._screen(candidate)
        if trial.pictures is None or trial.status not in ("accepted", "skipped"):
            return False
        # Where an oracle reads the pictures, many have to be drawn: not of what has hardly a chance.
        return trial.pictures.score is None or trial.pictures.psnr >= _MIN_SCREENING_PSNR

    def _screen(self, candidate: Candidate) -> Trial:
        """The candidate, looked at roughly; a row that says what went wrong where it did."""
        try:
            self.processes.reopen_dead()
            gain = self.processes.measure_speedup(candidate).value
            if gain >= _MIN_SPEEDUP:
                return self.processes.evaluate(candidate, SCREENING_PICTURES)
            reason = f"it saves nothing here: {gain:.2f} times as fast as the plain walk"
            trial = Trial(candidate, "rejected", reason)
        except CandidateError as failure:
            trial = Trial(candidate, "failed", str(failure))
        self.sweep.add_trial(trial)
        return trial

    def _passes_in_full(self, candidate: Candidate) -> bool:
        """Whether it passes on many pictures, drawn in portions until the answer is no, or all are drawn."""
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
        """Seconds to draw what is missing until it can be accepted."""
        seconds = 0.0
        for one in (BASELINE_PIPELINE, candidate):
            known, drawn = self.sweep.find_trial(one), self.processes.scored.get(one.key)
            if known and known.seconds:
                seconds += (FULL_PICTURES - (len(drawn.samples.pictures) if drawn else 0)) * known.seconds.median
        return seconds

    def _cannot_recover(self, candidate: Candidate, count: int) -> bool:
        """Whether more pictures can hardly bring the score back: even the interval's upper end misses it."""
        base, looked = (self.processes.score_samples(one, count).correct for one in (BASELINE_PIPELINE, candidate))
        drop = self.sweep.report.bounds.max_score_drop
        if base is None or looked is None or drop is None:
            return False
        mean, _, high = paired_score_gain(base, looked)
        return 100 * (mean + high) / 2 < -drop
