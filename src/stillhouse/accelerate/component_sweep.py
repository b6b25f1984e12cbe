"""The part of a sweep that measures one network: its baseline, all its candidates, and the fastest side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from stillhouse.accelerate.evaluation.baseline import (
    measure_baseline,
    nan_outputs,
    reopen_baseline,
    restore_baseline,
    unexcited_outputs,
    unverified_branches,
)
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.evaluate import evaluate
from stillhouse.accelerate.options import is_selected
from stillhouse.accelerate.records.candidate import DISTILLED, Candidate
from stillhouse.accelerate.records.trial import BUDGET_CUT, BUDGET_ENDED, Trial
from stillhouse.accelerate.search.candidates import (
    HEAVY_COMPONENTS,
    Environment,
    baseline_candidate,
    dominated_reason,
    order_candidates,
    plan_candidates,
    spoilt_graph_reason,
)
from stillhouse.accelerate.search.mixed_precision import search_mixed_precision
from stillhouse.accelerate.search.students import copy_student_decoder
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.accelerate.selection.runoff import final_seconds, run_final
from stillhouse.accelerate.state import SweepState
from stillhouse.backends.runtime import BackendStatus

_CANDIDATES_SHARE = 0.85
"""Share of a heavy network's time in which its candidates are measured. The rest is for timing the fastest side by
side.
"""


@dataclass(frozen=True, slots=True)
class ComponentSweep:
    """Measurement of one network.

    Args:
        sweep: options, clock and report; measurements are added to the report.
        name: name of the network.
        environment: properties of the machine and of the network.
        context: inputs and limits of the evaluations.
        all_backends: status of each backend by name, also of those that the user did not select.
        extra_candidates: candidates besides those of the backends, such as decoders of distilled students.
        share: share of the time budget at whose end the measurement of this network ends.
    """

    sweep: SweepState
    name: str
    environment: Environment
    context: EvaluationContext
    all_backends: Mapping[str, BackendStatus]
    extra_candidates: Sequence[Candidate] = ()
    share: float = 1.0

    def run(self) -> str:
        """Measure the baseline and all candidates, and time the fastest side by side.

        Returns:
            the reason why the baseline could not be measured; empty if it was.
        """
        with self._open_baseline() as (baseline, reason):
            planned = self._plan(baseline)
            for item in planned:
                if isinstance(item, Trial) and not self.sweep.find_trial(item.candidate):
                    self.sweep.add_trial(item)
            trials = self.sweep.report.trials_of(self.name)
            candidates = order_candidates([item for item in planned if isinstance(item, Candidate)], trials)
            if baseline is None:
                for candidate in candidates:
                    if not self.sweep.find_trial(candidate):
                        self.sweep.add_trial(Trial(candidate, "skipped", reason))
            else:
                self._measure(candidates, baseline)
            return reason

    def _plan(self, baseline: BaselineRun | None) -> list[Trial | Candidate]:
        environment = self.environment
        if baseline is not None and not baseline.has_independent_rows:
            environment = replace(environment, has_dynamic_batch=False)
        planned = plan_candidates(self.name, environment, self.extra_candidates)
        reference = baseline_candidate(self.name, self.all_backends)  # measured already, whatever is selected
        return [item for item in planned if item != reference and is_selected(item, self.sweep.options)]

    def _measure(self, candidates: Sequence[Candidate], baseline: BaselineRun) -> None:
        is_heavy = self.name in HEAVY_COMPONENTS
        share = self.share * (_CANDIDATES_SHARE if is_heavy else 1.0)
        for number, candidate in enumerate(candidates):
            self.sweep.on_progress(f"{self.name}: {candidate.name}", number, len(candidates))
            if not self.sweep.find_trial(candidate):
                self.sweep.add_trial(self._evaluate(candidate, baseline, share))
        if not baseline.process.is_alive:
            return
        with self.sweep.activity("measuring"):
            for trial in search_mixed_precision(
                self.sweep.report.trials_of(self.name),
                self.context,
                baseline,
                lambda: self.sweep.seconds_left(share),
            ):
                self.sweep.add_trial(trial)
            if is_heavy and self.sweep.seconds_left(self.share) > 0:
                self._run_final(baseline)

    def _run_final(self, baseline: BaselineRun) -> None:
        trials = self.sweep.report.trials_of(self.name)
        left = self.sweep.seconds_left(self.share)
        if final_seconds(trials) > left:
            return
        self.sweep.on_progress(f"{self.name}: final", 1, 1)
        budget = self.sweep.options.final_timing_budget
        budget = replace(budget, seconds=min(budget.seconds, left))
        for trial in run_final(trials, self.context, baseline, budget):
            self.sweep.add_trial(trial)

    def _evaluate(self, candidate: Candidate, baseline: BaselineRun, share: float) -> Trial:
        """Measure a candidate next to the baseline, and return its trial (measurements and verdict).

        Restart the baseline's process if it is dead. If this process dies during a failed evaluation, evaluate the
        candidate a second time, because the baseline may have caused the failure. The trial is "skipped" without time
        left, and where `dominated_reason` expects no gain.

        Args:
            candidate: candidate to measure.
            baseline: open baseline of this network.
            share: share of the time budget in which candidates of this network are measured.
        """
        trials = self.sweep.report.trials_of(candidate.component)
        bound = self.context.bounds.min_sqnr
        if reason := dominated_reason(candidate, trials) or spoilt_graph_reason(candidate, trials, bound):
            return Trial(candidate, "skipped", reason)
        trial = Trial(candidate, "skipped", BUDGET_ENDED)
        for _ in range(2):
            if self.sweep.seconds_left(share) <= 0:
                return Trial(candidate, "skipped", BUDGET_ENDED)
            self.context.timing_budget = replace(self.context.timing_budget, early_stop_ratio=self._early_stop_ratio())
            try:
                if not baseline.process.is_alive:
                    reopen_baseline(baseline, self.context)
            except CandidateError as failure:
                return Trial(candidate, "skipped", f"the baseline could not be opened again: {failure}")
            trial = self._evaluate_once(candidate, baseline)
            if trial.status != "failed" or baseline.process.is_alive:
                break
        is_out_of_time = trial.status == "failed" and monotonic() >= self.context.deadline
        return Trial(candidate, "skipped", BUDGET_CUT) if is_out_of_time else trial

    def _evaluate_once(self, candidate: Candidate, baseline: BaselineRun) -> Trial:
        """Evaluate a candidate, and add the seconds of building and of measuring to the report."""
        if candidate.recipe == DISTILLED:
            copy_student_decoder(candidate, self.sweep.workspace.directory, self.context.artifacts)
        is_built = candidate.makes_graph and (self.context.artifacts / candidate.artifact_key).is_dir()
        start = monotonic()
        trial = evaluate(candidate, self.context, baseline)
        building = 0.0 if is_built else trial.build_seconds or 0.0
        seconds = monotonic() - start
        self.sweep.add_seconds("building", building)
        self.sweep.add_seconds("measuring", seconds - building)
        longest = max(seconds, self.sweep.report.longest_seconds)
        self.sweep.report = replace(self.sweep.report, longest_seconds=longest)
        return trial

    def _early_stop_ratio(self) -> float:
        best = best_trial(self.sweep.report.trials_of(self.name), "latency")
        return 0.8 * best.ratio.value if best and best.ratio else 0.0

    @contextmanager
    def _open_baseline(self) -> Iterator[tuple[BaselineRun | None, str]]:
        """Yield the baseline, with its process open, or None and the reason why it could not be measured.

        The process is killed when the `with` statement ends.
        """
        candidate = baseline_candidate(self.name, self.all_backends)
        baseline, reason = None, BUDGET_ENDED
        if self.sweep.seconds_left(self.share) > 0:
            self.sweep.on_progress(f"{self.name}: baseline", 0, 1)
            with self.sweep.activity("measuring"):
                baseline, reason = self._measure_baseline(candidate)
        elif not self.sweep.find_trial(candidate):
            self.sweep.add_trial(Trial(candidate, "skipped", BUDGET_ENDED))
        try:
            yield baseline, reason
        finally:
            if baseline is not None:
                baseline.process.kill()

    def _measure_baseline(self, candidate: Candidate) -> tuple[BaselineRun | None, str]:
        """Open a candidate as the baseline, and measure it unless an earlier run did."""
        earlier = self.sweep.find_trial(candidate)
        if earlier and (restored := restore_baseline(earlier, self.context)):
            self._warn_of_missing_proof(restored)
            return restored, ""
        trial, baseline = measure_baseline(candidate, self.context)
        try:
            if baseline is None and monotonic() >= self.context.deadline:
                trial = Trial(candidate, "skipped", BUDGET_ENDED)
            self.sweep.add_trial(trial)
            if baseline is None:
                return None, f"the baseline, {candidate.name}, could not be measured: {trial.reason}"
            baselines = {**self.sweep.report.baselines, self.name: candidate.key}
            report = replace(self.sweep.report, baselines=baselines)
            if not self.sweep.workspace.is_pipeline:
                # This writes the manifest early: other commands can open the directory even if the sweep fails.
                apply_choice(self.sweep.workspace.directory, report)
            self.sweep.save_report(report)
            self._warn_of_missing_proof(baseline)
        except BaseException:
            if baseline is not None:
                baseline.process.kill()
            raise
        return baseline, ""

    def _warn_of_missing_proof(self, baseline: BaselineRun) -> None:
        """Add warnings about outputs and branches of the network about which the probes say nothing."""
        shares = nan_outputs(baseline)
        for name, share in shares.items():
            self.sweep.add_warning(
                f"{self.name}: the model as given returns NaN for {share:.0%} of the output {name} on the probes; "
                "errors of candidates cannot be seen there: give real inputs by --inputs"
            )
        names = ", ".join(name for name in unexcited_outputs(baseline) if shares.get(name) != 1.0)
        if names:
            self.sweep.add_warning(
                f"{self.name}: no probe excites the output {names} (its values are empty, constant or tiny); "
                "errors of candidates that change the arithmetic cannot be judged: give real inputs by --inputs"
            )
        for sentence in unverified_branches(baseline, self.context):
            self.sweep.add_warning(f"{self.name}: {sentence}")
