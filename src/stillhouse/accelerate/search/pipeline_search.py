"""Search of the fastest acceptable pipeline: distilled students, the best networks, and these with other sampling.

Whole pipelines are run, and their pictures and speed are compared with the unmodified f32 pipeline. Variants (networks
with sampling options) are first ranked by predicted seconds and estimated error, then tried boldest first.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from stillhouse.accelerate.calibration.prompts import comparison_requests, has_oracle, is_heavy
from stillhouse.accelerate.evaluation.accuracy import score_gains
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.score_decision import MIN_ACCEPTED, is_unlikely, next_look
from stillhouse.accelerate.evaluation.trajectory import RecordedTrajectory
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.search.pipeline_processes import (
    BASELINE_PIPELINE,
    CHOSEN_PIPELINE,
    OPENVINO_PIPELINE,
    SLOW_PICTURE_SECONDS,
    TUNED_PIPELINE,
    PipelineProcesses,
    process_candidate,
)
from stillhouse.accelerate.search.sampling_variants import sampling_plan, split_options
from stillhouse.accelerate.search.students import student_candidate
from stillhouse.accelerate.search.variant_ranking import (
    NetworkChoice,
    RankedVariant,
    add_decoders,
    decoder_saves_little,
    list_networks,
    picture_seconds,
    rank_variants,
)
from stillhouse.accelerate.search.variant_search import SEARCH_SHARE, VariantSearch
from stillhouse.accelerate.selection.apply import chosen_components, chosen_defaults, make_step_cache
from stillhouse.accelerate.selection.choose import best_trial, choose_networks
from stillhouse.accelerate.state import SweepState
from stillhouse.accelerate.workspace import f32_components, original_manifest
from stillhouse.measure.clock import run_interleaved
from stillhouse.pipelines.manifest import TRIALS, Component, Manifest, StepCache
from stillhouse.pipelines.roles import DENOISER

_FEW_PICTURES = 8
"""Number of pictures on which pipelines with equal sampling options are compared."""
_CHOSEN_PICTURES = 128
"""Number of pictures up to which the chosen networks are scored before variants run with them."""
_TRAJECTORIES, _HEAVY_TRAJECTORIES = 2, 1
"""Number of trajectories that are recorded to estimate errors; the second is for models whose steps take seconds."""
_RECORDING_SHARE = 0.25
"""Maximum share of the time left for the search in which trajectories are recorded."""
_PICTURES_SHARE = 0.5
"""Maximum share of the time left for the search in which the baseline's pictures are generated at first."""
_UNRANKED_VARIANTS = 16
"""Maximum number of variants that the report lists as not compared where the search did not begin."""
_FINALISTS = 3
"""Maximum number of accepted variants in the last timing of whole pipelines."""
_FINAL_ROUNDS, _MIN_FINAL_ROUNDS = 10, 2
_FINAL_SHARE = 0.97
"""Share of the time budget before which the last timing of whole pipelines must begin."""


def search_pipelines(sweep: SweepState) -> None:
    """Measure whole pipelines: distilled students, the chosen networks, and variants with other sampling or networks.

    Results are added to the sweep's report: a trial for each student and each variant that was considered, with the
    reason where it was not compared. The search ends within the time budget with what it has.
    """
    manifest = original_manifest(sweep.workspace.directory)
    with ExitStack() as stack:
        folder = sweep.workspace.directory / TRIALS / PIPELINE
        search = _PipelineSearch(sweep, manifest, PipelineProcesses(sweep, manifest, folder, stack, keeps_scores=True))
        try:
            search.run()
        except CandidateError as failure:
            warnings.warn(f"the end-to-end search ended early: {failure}", stacklevel=2)
        search.report_unreached()


@dataclass(slots=True)
class _PipelineSearch:
    """State of the search among whole pipelines.

    Args:
        sweep: options, clock and report of `stillhouse accelerate`; measurements are added to the report.
        manifest: manifest of the original pipeline.
        processes: the open pipelines.
        variants: the search among variants, once they are ranked.
        unopened: keys of networks that could not be opened together.
    """

    sweep: SweepState
    manifest: Manifest
    processes: PipelineProcesses
    variants: VariantSearch | None = None
    unopened: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Measure the baseline, the students, the chosen networks and the variants, then time the best together."""
        seconds = self._baseline_seconds()
        is_too_slow = seconds >= SLOW_PICTURE_SECONDS and seconds > self.sweep.seconds_left(SEARCH_SHARE)
        if is_too_slow or not self.open_baseline():
            return
        self.evaluate_students()
        if self.open_chosen():
            self.variants = self._start_search(self._rank())
            self.variants.run()
            if self.variants.leader() is None:
                self.verify_chosen()
            self.run_final()

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
        self.processes.evaluate(BASELINE_PIPELINE, self._few_pictures())
        return True

    def open_chosen(self) -> bool:
        """Open the pipeline of the chosen networks, and return whether its pictures are accepted.

        Each network was chosen on its own, but the pictures that all chosen networks make together may violate a bound,
        or be correct less often. Then a more accurate decoder is chosen, and if this is not enough, only networks whose
        outputs are almost exact.
        """
        if self._prefers_accurate_decoder():
            self.sweep.report = replace(self.sweep.report, careful=(DECODER,))
        if self._matches_baseline() and self._keeps_score():
            return True
        self.sweep.report = replace(self.sweep.report, careful=(DECODER,))
        if self._matches_baseline() and self._keeps_score():
            return True
        self.sweep.report = replace(self.sweep.report, exact_only=True)
        return self._matches_baseline()

    def _prefers_accurate_decoder(self) -> bool:
        """Return whether the fastest decoder saves hardly any time of a picture of few steps."""
        sweep, networks = self.sweep, self._networks()
        ranked = rank_variants(self.manifest, networks, ())
        if not ranked or DENOISER not in networks[0].names or sweep.options.goal != "latency":
            return False
        fastest, accurate = (
            choose_networks(replace(sweep.report, careful=careful), sweep.options.goal, sweep.report.bounds)
            for careful in ((), (DECODER,))
        )
        return decoder_saves_little(fastest, accurate, ranked[len(ranked) // 2].seconds)

    def _keeps_score(self) -> bool:
        """Score more pictures of the chosen networks, and return whether these are correct as often as the baseline's.

        Variants run with the same decoder, so that none of them could be accepted otherwise. The result is True where
        nothing scores the pictures, and where the time does not suffice.
        """
        while (trial := self.sweep.find_trial(CHOSEN_PIPELINE)) and trial.pictures:
            if trial.status == "rejected" or is_unlikely(score_gains(trial), trial.pictures.count, self._max_drop()):
                return False
            if not self._look_further(_CHOSEN_PICTURES):
                break
        return True

    def _look_further(self, most: int) -> bool:
        """Score the pictures of the next look with the chosen networks, and return whether this was done.

        It is not done without a program (oracle) that scores pictures, above `most` pictures, or without enough time.
        """
        trial = self.sweep.find_trial(CHOSEN_PIPELINE)
        look = next_look(trial.pictures.count) if trial and trial.pictures and has_oracle(self.manifest) else None
        if look is None or look > most or not self._start_search(()).affords(CHOSEN_PIPELINE, look):
            return False
        self.processes.evaluate(CHOSEN_PIPELINE, look)
        return True

    def _max_drop(self) -> float:
        drop = self.sweep.report.bounds.max_score_drop
        return 0.01 if drop is None else drop / 100

    def evaluate_students(self) -> None:
        """Measure each distilled student with its own networks and sampling options."""
        for number, name in enumerate(self.sweep.options.students):
            self.sweep.on_progress("pictures: students", number, len(self.sweep.options.students))
            candidate = student_candidate(name)
            if self.sweep.find_trial(candidate):
                continue
            if self.sweep.seconds_left(SEARCH_SHARE) <= 0:
                self.sweep.add_trial(Trial(candidate, "skipped", BUDGET_ENDED))
            elif self.processes.open_student(candidate):
                self._start_search(()).decide(RankedVariant(candidate, 0.0, 0.0))
                self._time_together((BASELINE_PIPELINE, candidate))
                self.processes.close(candidate)  # frees the student's memory for the pipelines that are opened next

    def verify_chosen(self) -> None:
        """Score more pictures of the chosen networks with the pipeline's own sampling options, where these are chosen.

        If they are rejected, choose again among the networks whose outputs are almost exact.
        """
        while self._look_further(MIN_ACCEPTED):
            trial = self.sweep.find_trial(CHOSEN_PIPELINE)
            if trial is None or trial.status != "accepted":
                break
        chosen = self.sweep.find_trial(CHOSEN_PIPELINE)
        if chosen and chosen.status == "rejected" and not self.sweep.report.exact_only:
            self.sweep.report = replace(self.sweep.report, exact_only=True)
            self._matches_baseline()

    def run_final(self) -> None:
        """Time the best pipelines in the same rounds, and update their speed-ups in the report.

        The pipelines are the original on onnxruntime, by default and tuned, and on OpenVINO, the chosen networks with
        the original sampling options, and the fastest accepted variants. A pipeline that is not open is left out.
        """
        components = f32_components(self.sweep.workspace.directory).items()
        tuned = {name: replace(item, settings=TUNED_PIPELINE.options) for name, item in components}
        openvino = {name: replace(item, backend="openvino", precision="auto", settings={}) for name, item in components}
        for reference, networks in ((TUNED_PIPELINE, tuned), (OPENVINO_PIPELINE, openvino)):
            if (
                self._baseline_seconds() < self.sweep.seconds_left(_FINAL_SHARE)
                and not self.processes.is_slow
                and self.processes.open(reference, networks, self.manifest.defaults)
            ):
                self.processes.evaluate(reference, self._few_pictures())
        finalists = [BASELINE_PIPELINE, TUNED_PIPELINE, OPENVINO_PIPELINE, CHOSEN_PIPELINE]
        finalists += [trial.candidate for trial in self._fastest_variants() if self.open_variant(trial.candidate)]
        self.sweep.on_progress("pictures: final", 0, 1)
        self._time_together([candidate for candidate in finalists if self.processes.is_open(candidate)])

    def open_variant(self, candidate: Candidate) -> bool:
        """Open the networks of a variant unless they are open, and return whether they are."""
        opened = process_candidate(candidate)
        self.processes.reopen_dead()
        if candidate.recipe == DISTILLED and not self.processes.is_open(candidate):
            return self.processes.open_student(candidate)
        if self.processes.is_open(candidate) or opened.key in self.unopened:
            return self.processes.is_open(candidate)
        self.processes.make_room(self.processes.peaks.get(CHOSEN_PIPELINE.key, 0), (BASELINE_PIPELINE, CHOSEN_PIPELINE))
        components, cache = self._components(opened)
        defaults = chosen_defaults(self.sweep.workspace.directory, self._report_with(opened))
        if ("cache_interval" in opened.options and cache is None) or not self.processes.open(
            opened, components, defaults, cache
        ):
            self.unopened.add(opened.key)
            return False
        return True

    def report_unreached(self) -> None:
        """Add a trial with a reason for each student and each considered variant that was not compared."""
        for candidate in map(student_candidate, self.sweep.options.students):
            if not any(trial.candidate == candidate for trial in self.sweep.report.trials_of(PIPELINE)):
                self.sweep.add_trial(Trial(candidate, "skipped", BUDGET_ENDED))
        if self.variants is None:
            ranked = rank_variants(self.manifest, self._networks(), ())
            self.variants = self._start_search(ranked[:_UNRANKED_VARIANTS])
        self.variants.report_unreached()

    def _start_search(self, ranked: Sequence[RankedVariant]) -> VariantSearch:
        return VariantSearch(
            self.sweep,
            ranked,
            self.processes,
            self.open_variant,
            BASELINE_PIPELINE,
            CHOSEN_PIPELINE,
            has_oracle(self.manifest),
        )

    def _rank(self) -> list[RankedVariant]:
        """Return the variants to try, ranked by recorded trajectories of the chosen networks."""
        networks, recorded, overhead = self._networks(), self._record_trajectories(), 0.0
        own = self.sweep.find_trial(CHOSEN_PIPELINE)
        plan = sampling_plan(self.manifest, {})
        if networks and own and own.seconds:
            rest = own.seconds.median - picture_seconds(plan, self._own_networks(networks))
            overhead = max(0.0, rest / len(plan.evaluations))
        ranked = rank_variants(self.manifest, networks, recorded, overhead)
        middle = ranked[len(ranked) // 2].seconds if ranked else 0.0
        with_decoders = add_decoders(self.sweep.report, networks, middle)
        if len(with_decoders) > len(networks):
            return rank_variants(self.manifest, with_decoders, recorded, overhead)
        return ranked

    def _record_trajectories(self) -> list[RecordedTrajectory]:
        """Return trajectories of the chosen networks; empty where recording takes too much of the time left."""
        own = self.sweep.find_trial(CHOSEN_PIPELINE)
        count = _HEAVY_TRAJECTORIES if is_heavy(self.manifest) else _TRAJECTORIES
        seconds = own.seconds.median if own and own.seconds else 0.0
        if count * seconds > _RECORDING_SHARE * self.sweep.seconds_left(SEARCH_SHARE):
            return []
        self.sweep.on_progress("pictures: recording trajectories", 0, 1)
        return self.processes.record_trajectories(CHOSEN_PIPELINE, count)

    def _networks(self) -> list[NetworkChoice]:
        """Return the networks to run variants with; without measured denoisers, the chosen networks."""
        report = self.sweep.report
        names = [choice.names[DENOISER] for choice in list_networks(report)]
        with_cache = [name for name in names if self._can_cache(name)]
        chosen = NetworkChoice(
            can_cache=make_step_cache(self.sweep.workspace.directory, self._components()[0]) is not None
        )
        return list_networks(report, with_cache) or [chosen]

    def _own_networks(self, networks: Sequence[NetworkChoice]) -> NetworkChoice:
        """Return the choice of networks with the denoiser of CHOSEN_PIPELINE; if there is none, the first."""
        report = self.sweep.report
        names = [
            trial.candidate.name
            for trial in report.trials_of(DENOISER)
            if trial.candidate.key == report.evaluated_with.get(DENOISER)
        ]
        return next((choice for choice in networks if choice.names.get(DENOISER) in names), networks[0])

    def _can_cache(self, denoiser: str) -> bool:
        trials = [trial for trial in self.sweep.report.trials_of(DENOISER) if trial.candidate.name == denoiser]
        own = self.manifest.components[DENOISER]
        graph = next((trial.graph for trial in trials if trial.artifact and trial.graph), own.graph)
        components = {**self.manifest.components, DENOISER: replace(own, graph=graph)}
        return make_step_cache(self.sweep.workspace.directory, components) is not None

    def _components(self, candidate: Candidate = CHOSEN_PIPELINE) -> tuple[dict[str, Component], StepCache | None]:
        """Return the networks of a variant by name, and its graphs for feature caching if it caches features."""
        directory = self.sweep.workspace.directory
        components = chosen_components(directory, self._report_with(candidate))
        is_cached = "cache_interval" in candidate.options
        return components, make_step_cache(directory, components) if is_cached else None

    def _report_with(self, candidate: Candidate) -> Report:
        """Return the report with a choice of networks: those that a variant names, else those of CHOSEN_PIPELINE."""
        report = self.sweep.chosen_report()
        networks = {**report.chosen, **self.sweep.report.evaluated_with, **report.networks_of(candidate)}
        return replace(report, chosen=networks)

    def _few_pictures(self) -> int:
        """Return the number of pictures that the first comparisons use: as many as the time left allows, at least 1."""
        count = _FEW_PICTURES
        if not has_oracle(self.manifest):
            count = len(comparison_requests(self.manifest, self.sweep.options.requests))
        seconds, left = self._baseline_seconds(), self.sweep.seconds_left(SEARCH_SHARE)
        if seconds < SLOW_PICTURE_SECONDS or seconds * count <= _PICTURES_SHARE * left:
            return count
        return max(1, min(count, int(_PICTURES_SHARE * left / seconds)))

    def _baseline_seconds(self) -> float:
        """Return the predicted seconds of one picture of the baseline; 0 where its denoiser was not measured."""
        key = self.sweep.report.baselines.get(DENOISER)
        trial = next((item for item in self.sweep.report.trials_of(DENOISER) if item.candidate.key == key), None)
        if trial is None or trial.seconds is None:
            return 0.0
        rows = sum(sampling_plan(self.manifest, {}).rows)
        return rows * trial.seconds.median / trial.rows

    def _fastest_variants(self) -> list[Trial]:
        """Return the accepted variants that may be the fastest by their intervals, at most `_FINALISTS`."""
        variants = [
            trial
            for trial in self.sweep.report.trials_of(PIPELINE)
            if trial.candidate.recipe == "sampling" and trial.status == "accepted" and trial.candidate.options
        ]
        best = best_trial(variants, "latency")
        if best is None or best.ratio is None:
            return []
        close = [trial for trial in variants if trial.ratio and trial.ratio.high >= best.ratio.low]
        return sorted(close, key=lambda trial: -trial.ratio.value if trial.ratio else 0.0)[:_FINALISTS]

    def _time_together(self, candidates: Sequence[Candidate]) -> None:
        """Time open pipelines in the same rounds, and update their speed-ups in the report.

        There are fewer rounds where little time is left, and no timing if it does not suffice for `_MIN_FINAL_ROUNDS`.

        Args:
            candidates: candidates; BASELINE_PIPELINE must be among them.
        """
        found = [trial for trial in map(self.sweep.find_trial, candidates) if trial and trial.seconds]
        round_seconds = sum(trial.seconds.median for trial in found if trial.seconds)
        left = self.sweep.seconds_left()
        rounds = _FINAL_ROUNDS if _FINAL_ROUNDS * round_seconds <= left else int(left / round_seconds)
        if rounds < _MIN_FINAL_ROUNDS:
            return
        timers = {trial.candidate.key: partial(self.processes.timer(trial.candidate), 1) for trial in found}
        seconds = run_interleaved(timers, rounds)
        for trial in found:
            timings = seconds[trial.candidate.key]
            self.sweep.add_trial(trial.with_timings(timings, baseline_seconds=seconds[BASELINE_PIPELINE.key]))

    def _matches_baseline(self) -> bool:
        """Open the pipeline of the networks chosen so far, and return whether its pictures are accepted."""
        directory, report = self.sweep.workspace.directory, self.sweep.chosen_networks()
        self._note_components({name: key for name, key in report.chosen.items() if name != PIPELINE})
        if not self.processes.open(
            CHOSEN_PIPELINE, chosen_components(directory, report), chosen_defaults(directory, report)
        ):
            return False
        return self.processes.evaluate(CHOSEN_PIPELINE, self._few_pictures()).status == "accepted"

    def _note_components(self, components: Mapping[str, str]) -> None:
        """Record in the report which networks generate the pictures of CHOSEN_PIPELINE.

        If they have changed, the report loses the measurements of variants that ran with the earlier networks. Variants
        name their denoiser and decoder, so that they are kept if only these have changed.

        Args:
            components: key of the chosen candidate by network.
        """
        report = self.sweep.report
        before, after = (
            {name: key for name, key in networks.items() if name not in (DENOISER, DECODER)}
            for networks in (report.evaluated_with, components)
        )
        trials = tuple(
            trial
            for trial in report.trials
            if trial.candidate.component != PIPELINE
            or trial.candidate.recipe != "sampling"
            or report.evaluated_with == components
            or (before == after and {DENOISER, DECODER} & split_options(trial.candidate.options)[1].keys())
        )
        self.sweep.report = replace(report, trials=trials, evaluated_with=components)
