"""Whole pictures: the chosen networks together, then ways to walk with them, all beside the plain loops."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from stillhouse.accelerate.candidate import PIPELINE, Candidate
from stillhouse.accelerate.check import ROUGH, SURE, paired_gain
from stillhouse.accelerate.choose import best_of
from stillhouse.accelerate.loops import CHOSEN, DEFAULT, PLAIN, Looked, Loops, Sweeping
from stillhouse.accelerate.prompts import has_oracle, is_heavy
from stillhouse.accelerate.report import Bounds, Report
from stillhouse.accelerate.settle import chosen_components, chosen_defaults, step_cache
from stillhouse.accelerate.target import original
from stillhouse.accelerate.trial import Trial
from stillhouse.accelerate.walks import combinations, cost, ladders, other_samplers, walk
from stillhouse.measure.clock import alternate, paired_ratio, summarise
from stillhouse.models.manifest import Component, Manifest, read_manifest

PATIENCE = 60.0
"""Seconds of one picture from which whole pictures are not compared: the search draws hundreds."""
_LOOKS = 8
"""Combinations that are looked at, from the cheapest."""
_FEW = 4
"""Pictures of the plain loops, which differ by rounding only."""
_TRIES = 4
"""Combinations that are drawn in full before the search is content with less."""
_PAYS = 1.05
"""Of the plain walk's speed, what a way to walk must reach to be gone on with."""
_FINAL_ROUNDS = 10
_BEFORE_FINAL = 0.9
"""Of a time budget, what may be gone before the final."""
_LIKELY = 30.0
"""dB to the plain walk's pictures below which no way to walk was seen to keep its score; it is not drawn in full."""


def sweep_walks(sweep: Sweeping) -> None:
    """Try whole pictures; every trial goes into the sweep's report."""
    manifest = read_manifest(sweep.target.directory)
    if reason := _too_slow(manifest, sweep.report):
        for ladder in ladders(manifest, caches=False):
            for rung in ladder.rungs:
                sweep.add(Trial(walk(rung), "skipped", reason))
        return
    with ExitStack() as stack:
        search = _Search(sweep, manifest, Loops(sweep, manifest, stack))
        if search.begin():
            search.climb()
            search.combine()
            search.final()


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
    """What the search has found so far: rungs that passed roughly, fewer steps that passed in full, what to compare."""

    sweep: Sweeping
    manifest: Manifest
    loops: Loops
    passing: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    secured: Mapping[str, str] = field(default_factory=dict)
    can_cache: bool = False
    rough: Looked | None = None
    sure: Looked | None = None

    def begin(self) -> bool:
        """Open the plain loops and the chosen networks, and draw what others are compared with."""
        directory = self.sweep.target.directory
        report = self.sweep.chosen()
        before, chosen = original(directory), chosen_components(directory, report)
        plain = {name: Component(one.graph, one.weights) for name, one in before.items()}
        default = {name: replace(one, backend="openvino", precision="auto") for name, one in plain.items()}
        cache = step_cache(directory, chosen)
        self.can_cache = cache is not None
        self._drawn_with({name: key for name, key in report.chosen.items() if name != PIPELINE})
        self.loops.open(DEFAULT, default)
        defaults = chosen_defaults(directory, report)
        if not self.loops.open(PLAIN, plain) or not self.loops.open(CHOSEN, chosen, defaults, cache):
            return False
        plain_pictures = self.loops.look(PLAIN, _FEW)
        for candidate in (PLAIN, DEFAULT, CHOSEN):
            if self.loops.has(candidate):
                looked = plain_pictures if candidate is PLAIN else self.loops.look(candidate, _FEW)
                self.loops.measure(candidate, looked, plain_pictures)
        self.rough = self.loops.look(CHOSEN, ROUGH)
        return True

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
            if self._passes_surely(options):
                return

    def final(self) -> None:
        """The plain loops and the fastest way to walk, timed in the same rounds."""
        best = best_of([one for one in self.sweep.report.of(PIPELINE) if one.candidate.recipe == "walk"], "latency")
        ways = {PLAIN.key: PLAIN, DEFAULT.key: DEFAULT, CHOSEN.key: CHOSEN}
        if best is not None:
            ways[best.candidate.key] = best.candidate
        laps = {key: self.loops.lap(one) for key, one in ways.items() if self.loops.has(one)}
        self.sweep.tell("pictures: final", 0, 1)
        seconds = alternate({key: partial(lap, 1) for key, lap in laps.items()}, _FINAL_ROUNDS)
        for key, taken in seconds.items():
            trial = self.sweep.known(ways[key])
            if trial is not None:
                ratio = paired_ratio(seconds[PLAIN.key], taken)
                self.sweep.add(replace(trial, seconds=summarise(taken), ratio=ratio))

    def _drawn_with(self, networks: Mapping[str, str]) -> None:
        """Note which networks draw; what an earlier run drew with others says nothing of them."""
        report = self.sweep.report
        kept = report.trials
        if report.drawn_with != networks:
            kept = tuple(trial for trial in kept if trial.candidate.component != PIPELINE)
        baselines = {**report.baselines, PIPELINE: PLAIN.key}
        self.sweep.report = replace(report, trials=kept, baselines=baselines, drawn_with=networks)

    def _secure(self) -> None:
        """Of the rungs of steps the boldest that passes in full, before time goes into what may gain more."""
        for rung in self.passing.get("steps", [])[::-1]:
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes_surely(rung):
                self.secured = rung
                break
        for options in other_samplers(self.secured) if self.secured else ():
            if self.sweep.left(_BEFORE_FINAL) > 0 and self._passes(options):
                self.passing["steps"].append(options)

    def _passes(self, options: Mapping[str, str]) -> bool:
        """Whether a way to walk pays and passes roughly; its trial is in the report, to be looked at again."""
        candidate = walk(options)
        trial = self.sweep.known(candidate)
        if trial is None:
            assert self.rough is not None
            if not self._pays(candidate):
                return False
            trial = self.loops.measure(candidate, self.loops.look(candidate, ROUGH), self.rough)
        if trial.pictures is None or trial.pictures.psnr < _LIKELY:
            return False
        return trial.status in ("accepted", "skipped")

    def _pays(self, candidate: Candidate) -> bool:
        """Whether it is faster than the plain walk at all: on cores that each take a row, a row less saves nothing."""
        gain = self.loops.glance(candidate).value
        if gain >= _PAYS:
            return True
        reason = f"it saves nothing here: {gain:.2f} times as fast as the plain walk"
        self.sweep.add(Trial(candidate, "rejected", reason))
        return False

    def _passes_surely(self, options: Mapping[str, str]) -> bool:
        """Whether it passes on many pictures, drawn in portions until the answer is no, or all are drawn."""
        candidate = walk(options)
        if not has_oracle(self.manifest):
            return (self.sweep.known(candidate) or Trial(candidate, "failed")).status == "accepted"
        if self.sure is None:
            looks = [self.sweep.known(CHOSEN), self.sweep.known(candidate)]
            needed = SURE * sum(one.seconds.median for one in looks if one and one.seconds)
            if self.sweep.left(_BEFORE_FINAL) < needed:
                return False
            self.sure = self.loops.look(CHOSEN, SURE)
            self.loops.measure(CHOSEN, self.sure, self.sure)
        looked = self.loops.look(candidate, SURE // 2)
        if _is_lost(self.sure, looked, self.sweep.report.bounds):
            return self.loops.measure(candidate, looked, self.sure.first(SURE // 2)).status == "accepted"
        looked = looked.then(self.loops.look(candidate, SURE, SURE // 2))
        return self.loops.measure(candidate, looked, self.sure).status == "accepted"


def _is_lost(base: Looked, looked: Looked, bounds: Bounds) -> bool:
    """Whether the rest of the pictures can hardly bring the score back: even the interval's upper end misses it."""
    if base.correct is None or looked.correct is None or bounds.max_score_drop is None:
        return False
    mean, _, high = paired_gain(base.correct[: len(looked.correct)], looked.correct)
    return 100 * (mean + high) / 2 < -bounds.max_score_drop
