"""Search of the fastest acceptable variant (networks and sampling options) by whole pictures, boldest first.

Variants are ranked beforehand (`variant_ranking`). The search generates pictures with the boldest variant first, and
adds pictures while its scores are undecided (`score_decision`) and it promises more speed than the fastest accepted
variant. Nothing assumes that quality falls evenly with steps: each variant is judged by its own pictures. Estimated
errors only order the variants: after a rejection, variants whose error is clearly smaller come first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from stillhouse.accelerate.evaluation.accuracy import score_gains
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.latency import LatencyComparison
from stillhouse.accelerate.evaluation.score_decision import MIN_ACCEPTED, is_unlikely, next_look
from stillhouse.accelerate.records.candidate import DISTILLED, PIPELINE, Candidate
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.search.sampling_variants import split_options
from stillhouse.accelerate.search.variant_ranking import RankedVariant
from stillhouse.accelerate.state import SweepState

SEARCH_SHARE = 0.92
"""Share of the time budget at whose end the search ends."""
_ERROR_STEP = 0.8
"""After a rejection, variants of the same networks come first whose estimated error is below this share of the rejected
one's."""
_SAFE_ERROR_STEP, _SAFE_SHARE = 0.4, 0.5
"""The same share once less than `_SAFE_SHARE` of the search's time is left and nothing is accepted yet, so that the
search ends with a variant rather than with the boldest undecided one."""
_LONG_LOOK_SHARE = 0.5
"""Maximum share of the time left in which more than MIN_ACCEPTED pictures of an undecided variant are generated before
others are tried. A score of few pictures is noisy for all variants alike, since they share the baseline's pictures, so
that milder variants would be undecided, too.
"""
_MIN_SPEEDUP = 1.05
"""Minimum speed-up of a variant over the chosen networks with the pipeline's own sampling options."""
_SCORING_SECONDS = 0.003
"""Estimated seconds in which the oracle scores a picture."""


class VariantProcesses(Protocol):
    """Source of a pipeline candidate's pictures and timings, such as `pipeline_processes.PipelineProcesses`."""

    def evaluate(self, candidate: Candidate, count: int) -> Trial:
        """Compare `count` pictures of a candidate with the baseline's, judge them, and add the trial to the report."""

    def compare_speed(self, candidate: Candidate) -> LatencyComparison:
        """Return the measured speed of a candidate next to the baseline's."""

    def scored_count(self, candidate: Candidate) -> int:
        """Return how many pictures of a candidate have been generated."""

    def seconds_per_picture(self, candidate: Candidate) -> float | None:
        """Return the seconds that one more picture takes; None: unknown."""


@dataclass(slots=True)
class VariantSearch:
    """State of the search among ranked variants.

    Args:
        sweep: options, clock and report; verdicts are added to the report.
        ranked: the variants, fastest first by their predicted seconds.
        processes: source of pictures and timings.
        open_variant: opens the networks of a candidate, and returns whether they are open.
        baseline, own: candidates of the original pipeline, and of the chosen networks with its sampling options.
        has_scores: whether a program (oracle) scores the pictures. Otherwise one look decides.
        finished: keys of variants that are decided, failed or set aside.
        set_aside: undecided variants that are unlikely to be accepted, or need many pictures; they come last.
        error_limits: by names of the networks, the smallest estimated error of a rejected variant.
        order_limits: as `error_limits`, but also of variants that were set aside.
        corrections: by key of a timed variant, its measured cost divided by its predicted seconds. A cost is the share
            of the baseline's seconds that a picture takes, measured in the same rounds, so that it does not depend on
            the load of the machine.
        seconds: seconds that were left when the search began.
    """

    sweep: SweepState
    ranked: Sequence[RankedVariant]
    processes: VariantProcesses
    open_variant: Callable[[Candidate], bool]
    baseline: Candidate
    own: Candidate
    has_scores: bool = True
    finished: set[str] = field(default_factory=set)
    set_aside: list[RankedVariant] = field(default_factory=list)
    error_limits: dict[object, float] = field(default_factory=dict)
    order_limits: dict[object, float] = field(default_factory=dict)
    corrections: dict[str, float] = field(default_factory=dict)
    seconds: float = float("inf")

    def run(self) -> None:
        """Decide variants, boldest first, until none is left that promises more than the fastest accepted one.

        Then more pictures of the fastest accepted variant are generated, up to the last look, and at last of faster
        variants that were set aside. The search ends early when the share SEARCH_SHARE of the time budget is used.
        """
        self.seconds = self.sweep.seconds_left(SEARCH_SHARE)
        while self.sweep.seconds_left(SEARCH_SHARE) > 0:
            variant = self._next_variant(item for item in self.ranked if item.candidate.key not in self.finished)
            if variant is not None:
                self.decide(variant)
            elif not self._confirm_leader():
                variant = self._fastest_set_aside()
                if variant is None:
                    return
                self.set_aside.remove(variant)
                self.decide(variant, is_patient=True)

    def report_unreached(self) -> None:
        """Add a trial with the reason for each variant that no pictures were generated with."""
        leader = self.leader()
        for variant in self.ranked:
            if self._trial(variant.candidate) is not None:
                continue
            reason = BUDGET_ENDED
            if self._predicted_cost(variant) >= self._cost_to_beat():
                other = leader.candidate.name if leader else "the own sampling options"
                speed = 1 / self._predicted_cost(variant)
                reason = f"it promises no more speed than {other}: {speed:.1f} times the baseline's"
            elif variant.error >= self.error_limits.get(_networks(variant.candidate), float("inf")):
                reason = f"a variant of less estimated error was rejected: {variant.error:.2f} of the picture"
            self.sweep.add_trial(Trial(variant.candidate, "skipped", f"not compared: {reason}"))

    def decide(self, variant: RankedVariant, is_patient: bool = False) -> None:
        """Generate pictures with a variant, and add more at each look, until it is decided, set aside or out of time.

        Args:
            variant: the variant.
            is_patient: whether pictures are added even where an acceptance is unlikely.
        """
        candidate = variant.candidate
        self.finished.add(candidate.key)
        self.sweep.on_progress(f"pictures: {candidate.name}", len(self.finished), len(self.ranked))
        trial = self._trial(candidate)
        if trial is None or trial.status == "skipped":
            trial = self._look_until_decided(variant, trial, is_patient)
        if trial is not None:
            if trial.ratio and variant.seconds:
                self.corrections[candidate.key] = 1 / trial.ratio.value / variant.seconds
            self._settle(variant, trial, is_patient)

    def _settle(self, variant: RankedVariant, trial: Trial, is_patient: bool = False) -> None:
        """Remember the estimated error of a rejected variant, and set an undecided one aside."""
        if trial.pictures is None:
            return
        if trial.status == "rejected":
            self._lower(self.error_limits, variant)
            self._lower(self.order_limits, variant)
        elif trial.status == "skipped" and not is_patient:
            self._lower(self.order_limits, variant)
            self.set_aside.append(variant)

    def leader(self) -> Trial | None:
        """Return the trial of the fastest accepted variant or student; None: none is accepted."""
        accepted = [
            trial
            for trial in self.sweep.report.trials_of(PIPELINE)
            if trial.status == "accepted"
            and trial.ratio
            and (trial.candidate.recipe == DISTILLED or split_options(trial.candidate.options)[0])
        ]
        return max(accepted, key=lambda trial: trial.ratio.value if trial.ratio else 0.0, default=None)

    def _look_until_decided(self, variant: RankedVariant, trial: Trial | None, is_patient: bool) -> Trial | None:
        """Return a variant's trial after the look that decided it, or after the last look that time allowed."""
        candidate = variant.candidate
        try:
            if not self.open_variant(candidate):
                self.sweep.add_trial(Trial(candidate, "failed", "its networks could not be opened together"))
                return None
            if trial is None and not self._is_faster(variant):
                return self._trial(candidate)
            count = trial.pictures.count if trial and trial.pictures else 0
            while (look := next_look(count)) and self.affords(candidate, look):
                if not is_patient and count >= MIN_ACCEPTED and self._is_costly(candidate, look):
                    break
                trial = self.processes.evaluate(candidate, look)
                count = look
                if trial.status != "skipped" or not self.has_scores or (not is_patient and self._is_unlikely(trial)):
                    break
        except CandidateError as failure:
            if self.sweep.seconds_left() > 0:  # otherwise it was ended with the time budget, and is no failure
                trial = Trial(candidate, "failed", str(failure))
                self.sweep.add_trial(trial)
        return trial

    def _is_faster(self, variant: RankedVariant) -> bool:
        """Time a variant, and return whether it is faster than the fastest accepted one. If not, add its trial."""
        if not self.affords(variant.candidate, 1):
            return False
        if not self.has_scores or variant.candidate.recipe == DISTILLED:
            return True  # few pictures take no longer than timing; students are requested by name
        speed = self.processes.compare_speed(variant.candidate).ratio
        self.corrections[variant.candidate.key] = 1 / speed.value / variant.seconds
        if 1 / speed.high < self._cost_to_beat():
            return True
        leader = self.leader()
        other = leader.candidate.name if leader else "the own sampling options"
        reason = f"no speed-up over {other}: {speed.value:.2f} times the baseline's speed"
        self.sweep.add_trial(Trial(variant.candidate, "rejected", reason))
        return False

    def affords(self, candidate: Candidate, count: int) -> bool:
        """Return whether the time left suffices to compare `count` pictures of an open candidate."""
        return self._comparison_seconds(candidate, count) <= self.sweep.seconds_left(SEARCH_SHARE)

    def _is_costly(self, candidate: Candidate, count: int) -> bool:
        """Return whether comparing `count` pictures of a variant takes so long that others come first."""
        return self._comparison_seconds(candidate, count) > _LONG_LOOK_SHARE * self.sweep.seconds_left(SEARCH_SHARE)

    def _comparison_seconds(self, candidate: Candidate, count: int) -> float:
        """Return the seconds that the missing pictures of an open candidate and of the baseline take, up to `count`."""
        needed = 0.0
        for pipeline in (self.baseline, candidate):
            missing = max(0, count - self.processes.scored_count(pipeline))
            seconds = self.processes.seconds_per_picture(pipeline) or 0.0
            needed += missing * (seconds + (_SCORING_SECONDS if self.has_scores else 0.0))
        return needed

    def _confirm_leader(self) -> bool:
        """Generate the pictures of the next look with the fastest accepted variant; return whether time allowed."""
        leader = self.leader()
        if not self.has_scores or leader is None or leader.pictures is None:
            return False
        look = next_look(leader.pictures.count)
        if look is None or not self.open_variant(leader.candidate) or not self.affords(leader.candidate, look):
            return False
        self.sweep.on_progress(f"pictures: more of {leader.candidate.name}", leader.pictures.count, look)
        try:
            trial = self.processes.evaluate(leader.candidate, look)
        except CandidateError as failure:
            trial = Trial(leader.candidate, "failed", str(failure))
            self.sweep.add_trial(trial)
        for variant in self.ranked:
            if variant.candidate == leader.candidate:
                self._settle(variant, trial)
        return True

    def _next_variant(self, variants: Iterable[RankedVariant]) -> RankedVariant | None:
        """Return the fastest variant that may be accepted and promises more than the leader; None: there is none."""
        target = self._cost_to_beat()
        open_variants = [
            variant
            for variant in variants
            if self._predicted_cost(variant) < target
            and variant.error < self.error_limits.get(_networks(variant.candidate), float("inf"))
        ]
        is_late = self.leader() is None and self.sweep.seconds_left(SEARCH_SHARE) < _SAFE_SHARE * self.seconds
        share = _SAFE_ERROR_STEP if is_late else _ERROR_STEP
        likely = [
            variant
            for variant in open_variants
            if variant.error <= share * self.order_limits.get(_networks(variant.candidate), float("inf"))
        ]
        return min(likely or open_variants, key=lambda variant: variant.seconds, default=None)

    def _fastest_set_aside(self) -> RankedVariant | None:
        """Return the fastest variant that was set aside and promises more than the leader; None: there is none.

        Variants that are unlikely to be accepted come after the others.
        """
        promising = [variant for variant in self.set_aside if self._predicted_cost(variant) < self._cost_to_beat()]

        def order(variant: RankedVariant) -> tuple[bool, float]:
            trial = self._trial(variant.candidate)
            return trial is not None and self._is_unlikely(trial), variant.seconds

        return min(promising, key=order, default=None)

    def _predicted_cost(self, variant: RankedVariant) -> float:
        """Return the expected cost of a picture: as measured, or as predicted and corrected by those measured."""
        trial = self._trial(variant.candidate)
        if trial and trial.ratio:
            return 1 / trial.ratio.value
        baseline = self._trial(self.baseline)
        if self.corrections:
            return variant.seconds * median(self.corrections.values())
        return variant.seconds / (baseline.seconds.median if baseline and baseline.seconds else 1.0)

    def _cost_to_beat(self) -> float:
        """Return the cost of a picture below which a variant is worth generating pictures for."""
        leader, own = self.leader(), self._trial(self.own)
        if leader and leader.ratio:
            return 1 / leader.ratio.value
        return 1 / own.ratio.value / _MIN_SPEEDUP if own and own.ratio else float("inf")

    def _is_unlikely(self, trial: Trial) -> bool:
        drop = self.sweep.report.bounds.max_score_drop
        return (
            trial.pictures is not None
            and drop is not None
            and is_unlikely(score_gains(trial), trial.pictures.count, drop / 100)
        )

    def _lower(self, limits: dict[object, float], variant: RankedVariant) -> None:
        key = _networks(variant.candidate)
        limits[key] = min(limits.get(key, float("inf")), variant.error)

    def _trial(self, candidate: Candidate) -> Trial | None:
        return self.sweep.find_trial(candidate)


def _networks(candidate: Candidate) -> object:
    return frozenset(split_options(candidate.options)[1].items())
