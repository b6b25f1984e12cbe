"""Whole pictures: the chosen networks together, then ways to walk with them, all beside the plain loops."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from stillhouse.accelerate.calibration.prompts import has_oracle, is_heavy
from stillhouse.accelerate.evaluation.accuracy import ROUGH, SURE, paired_gain
from stillhouse.accelerate.evaluation.candidate_process import SubjectFailed
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.search.pipeline_processes import CHOSEN, DEFAULT, PLAIN, Drawing, Loops
from stillhouse.accelerate.search.sampling_variants import combinations, cost, ladders, other_samplers, walk
from stillhouse.accelerate.search.students import student
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, step_cache
from stillhouse.accelerate.selection.choose import best_of
from stillhouse.accelerate.workspace import original_manifest, plain
from stillhouse.measure.clock import alternate
from stillhouse.pipelines.manifest import TRIALS, Manifest

PATIENCE = 60.0
"""Seconds of one picture from which whole pictures are not compared: the search draws hundreds."""
_LOOKS = 8
"""Combinations that are looked at, from the cheapest."""
_FEW = 8
"""Pictures by which networks are compared whose walk is the same."""
_TRIES = 4
"""Combinations that are drawn in full before the search is content with less."""
_PAYS = 1.05
"""Of the plain walk's speed, what a way to walk must reach to be gone on with."""
_FINAL_ROUNDS = 10
_BEFORE_FINAL = 0.92
_BEFORE_END = 0.97
"""Of a time budget, what may be gone before the final, and before its last comparison."""
_LIKELY = 30.0
"""dB to the plain walk's pictures below which no way to walk was seen to keep its score; it is not drawn in full."""


class Sweeping(Drawing, Protocol):
    """What the search needs of the sweep that it is a part of."""

    @property
    def students(self) -> Sequence[str]:
        """Names of the students that are candidates."""

    def tell(self, what: str, done: float, total: float, /) -> None:
        """Show what goes on, and how far it is."""

    def known(self, candidate: Candidate) -> Trial | None:
        """What was found out of it before."""

    def left(self, share: float) -> float:
        """Seconds left of the budget's share."""

    def chosen(self) -> Report:
        """The report with its choice among what was tried so far."""


def sweep_walks(sweep: Sweeping) -> None:
    """Try whole pictures; every trial goes into the sweep's report."""
    manifest = original_manifest(sweep.target.directory)
    if reason := _too_slow(manifest, sweep.report):
        for ladder in ladders(manifest, caches=False):
            for rung in ladder.rungs:
                sweep.add(Trial(walk(rung), "skipped", reason))
        for candidate in map(student, sweep.students):
            if not sweep.known(candidate):
                sweep.add(Trial(candidate, "skipped", reason))
        return
    with ExitStack() as stack:
        search = _Search(sweep, manifest, Loops(sweep, manifest, sweep.target.directory / TRIALS / PIPELINE, stack))
        try:
            if not search.open():
                return
            search.hurry()
            if search.begin():
                search.climb()
                search.combine()
                search.final()
        except SubjectFailed as failure:
            warnings.warn(f"the search among whole pictures ended early: {failure}", stacklevel=2)


def _too_slow(manifest: Manifest, report: Report) -> str:
    """Why whole pictures are not compared; empty where they are."""
    best = best_of(report.of("unet"), "latency")
    if best is None or best.seconds is None:
        if not is_heavy(manifest):
            return ""
        return "one picture may take minutes on this machine, and its U-Net was not measured"
    seconds = cost(manifest, {}) * best.seconds.median / best.rows
    if seconds <= PATIENCE:
        return ""
    return f"one picture takes {seconds / 60:.0f} min on this machine, so whole pictures are not compared"


@dataclass(slots=True)
class _Search:
    """What the search has found so far: rungs that passed roughly, and fewer steps that passed in full."""

    sweep: Sweeping
    manifest: Manifest
    loops: Loops
    passing: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    secured: Mapping[str, str] = field(default_factory=dict)
    can_cache: bool = False

    def open(self) -> bool:
        """Open the plain loop, which everything is compared with."""
        if not self.loops.open(PLAIN, plain(self.sweep.target.directory), self.manifest.defaults):
            return False
        self.sweep.report = replace(self.sweep.report, baselines={**self.sweep.report.baselines, PIPELINE: PLAIN.key})
        self.loops.measure(PLAIN, _FEW)
        return True

    def begin(self) -> bool:
        """Open the chosen networks, and see that they draw what the plain loop draws."""
        if self._draws_well():
            return True
        # One by one they kept their bounds: those that draw the very same pictures keep them together, too.
        self.sweep.report = replace(self.sweep.report, exact=True)
        return self._draws_well()

    def hurry(self) -> None:
        """Students, each with its own walk on its own networks."""
        for number, name in enumerate(self.sweep.students):
            self.sweep.tell("pictures: students", number, len(self.sweep.students))
            candidate = student(name)
            if self.sweep.known(candidate):
                continue
            if self.sweep.left(_BEFORE_FINAL) <= 0:
                self.sweep.add(Trial(candidate, "skipped", BUDGET_ENDED))
            elif self.loops.open_student(candidate):
                try:
                    if self.loops.measure(candidate, ROUGH).status == "skipped":
                        self._passes_surely(candidate)
                    self._time({one.key: one for one in (PLAIN, candidate)})
                except SubjectFailed as failure:
                    self.sweep.add(Trial(candidate, "failed", str(failure)))
                self.loops.close(candidate)  # it takes memory, and the others need it

    def climb(self) -> None:
        """On each ladder, the boldest rung that passes roughly, by bisection."""
        for ladder in ladders(self.manifest, caches=self.can_cache):
            low, high = 0, len(ladder.rungs)
            while low < high and self.sweep.left(_BEFORE_FINAL) > 0:
                middle = (low + high) // 2
                self.sweep.tell(f"pictures: {ladder.kind}", middle, len(ladder.rungs))
                if self._passes(ladder.rungs[middle]):
                    self.passing.setdefault(ladder.kind, []).append(ladder.rungs[middle])
                    low = middle + 1
                else:
                    high = middle
            if ladder.kind == "steps":
                self._secure()

    def combine(self) -> None:
        """Combinations of what passed that cost less than what is secured, cheapest first, until one passes in full."""
        enough = cost(self.manifest, self.secured)
        ways = [options for options in combinations(self.passing) if cost(self.manifest, options) < enough]
        ways.sort(key=lambda options: cost(self.manifest, options))
        tries = 0
        for options in ways[:_LOOKS]:
            if self.sweep.left(_BEFORE_FINAL) <= 0 or tries == _TRIES:
                break
            self.sweep.tell("pictures: combinations", tries, _TRIES)
            if not self._passes(options):
                continue
            tries += 1
            if self._passes_surely(walk(options)):
                return

    def final(self) -> None:
        """The plain loops, the chosen networks and the fastest way to walk with them, timed in the same rounds."""
        networks = plain(self.sweep.target.directory).items()
        default = {name: replace(one, backend="openvino", precision="auto") for name, one in networks}
        if self.sweep.left(_BEFORE_END) > 0 and self.loops.open(DEFAULT, default, self.manifest.defaults):
            self.loops.measure(DEFAULT, _FEW)
        best = best_of([one for one in self.sweep.report.of(PIPELINE) if one.candidate.recipe == "walk"], "latency")
        ways = {one.key: one for one in (PLAIN, DEFAULT, CHOSEN) if self.loops.has(one)}
        if best is not None:
            ways[best.candidate.key] = best.candidate
        self.sweep.tell("pictures: final", 0, 1)
        self._time(ways)

    def _time(self, ways: Mapping[str, Candidate]) -> None:
        """Whole pictures of these, by key, in the same rounds; the plain loop is among them."""
        seconds = alternate({key: partial(self.loops.lap(one), 1) for key, one in ways.items()}, _FINAL_ROUNDS)
        for key, taken in seconds.items():
            trial = self.sweep.known(ways[key])
            if trial is not None:
                self.sweep.add(trial.timed(taken, beside=seconds[PLAIN.key]))

    def _draws_well(self) -> bool:
        """Open the networks that are chosen now; whether they draw what the plain loop draws."""
        directory, report = self.sweep.target.directory, self.sweep.chosen()
        chosen = chosen_components(directory, report)
        cache = step_cache(directory, chosen)
        self.can_cache = cache is not None
        self._drawn_with({name: key for name, key in report.chosen.items() if name != PIPELINE})
        if not self.loops.open(CHOSEN, chosen, chosen_defaults(directory, report), cache):
            return False
        return self.loops.measure(CHOSEN, _FEW).status == "accepted"

    def _drawn_with(self, networks: Mapping[str, str]) -> None:
        """Note which networks draw; what an earlier run drew with others says nothing of them."""
        report = self.sweep.report
        kept = report.trials
        if report.drawn_with != networks:
            kept = tuple(one for one in kept if one.candidate.component != PIPELINE or one.candidate.recipe != "walk")
        self.sweep.report = replace(report, trials=kept, drawn_with=networks)

    def _secure(self) -> None:
        """Of the rungs of steps the boldest that passes in full, before time goes into what may gain more."""
        for rung in self.passing.get("steps", [])[::-1]:
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes_surely(walk(rung)):
                self.secured = rung
                break
        for options in other_samplers(self.secured) if self.secured else ():
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes(options):
                self.passing["steps"].append(options)

    def _passes(self, options: Mapping[str, str]) -> bool:
        """Whether a way to walk pays and passes roughly; its trial is in the report, to be looked at again."""
        candidate = walk(options)
        trial = self.sweep.known(candidate) or self._tried(candidate)
        if trial.pictures is None or trial.status not in ("accepted", "skipped"):
            return False
        # Where an oracle reads the pictures, many have to be drawn: not of what has hardly a chance.
        return trial.pictures.score is None or trial.pictures.psnr >= _LIKELY

    def _tried(self, candidate: Candidate) -> Trial:
        """The candidate, looked at roughly; a row that says what went wrong where it did."""
        try:
            self.loops.mend()
            gain = self.loops.glance(candidate).value
            if gain >= _PAYS:
                return self.loops.measure(candidate, ROUGH)
            reason = f"it saves nothing here: {gain:.2f} times as fast as the plain walk"
            trial = Trial(candidate, "rejected", reason)
        except SubjectFailed as failure:
            trial = Trial(candidate, "failed", str(failure))
        self.sweep.add(trial)
        return trial

    def _passes_surely(self, candidate: Candidate) -> bool:
        """Whether it passes on many pictures, drawn in portions until the answer is no, or all are drawn."""
        if not has_oracle(self.manifest):
            return (self.sweep.known(candidate) or Trial(candidate, "failed")).status == "accepted"
        if self.sweep.left(_BEFORE_FINAL) < self._needs(candidate):
            return False
        try:
            self.loops.mend()
            count = SURE // 2 if self._is_lost(candidate, SURE // 2) else SURE
            return self.loops.measure(candidate, count).status == "accepted"
        except SubjectFailed as failure:
            self.sweep.add(Trial(candidate, "failed", str(failure)))
            return False

    def _needs(self, candidate: Candidate) -> float:
        """Seconds to draw what is missing until it can be accepted."""
        seconds = 0.0
        for one in (PLAIN, candidate):
            known, drawn = self.sweep.known(one), self.loops.looked.get(one.key)
            if known and known.seconds:
                seconds += (SURE - (len(drawn.drawn.pictures) if drawn else 0)) * known.seconds.median
        return seconds

    def _is_lost(self, candidate: Candidate, count: int) -> bool:
        """Whether more pictures can hardly bring the score back: even the interval's upper end misses it."""
        base, looked = (self.loops.look(one, count).correct for one in (PLAIN, candidate))
        drop = self.sweep.report.bounds.max_score_drop
        if base is None or looked is None or drop is None:
            return False
        mean, _, high = paired_gain(base, looked)
        return 100 * (mean + high) / 2 < -drop
