"""The sweep: every candidate of every component tried, the whole pictures after them, and a choice at the end.

The report on disk is the state: it is written after every trial, so that a sweep that was cut off goes on from it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, read_probes
from stillhouse.accelerate.calibration.prompts import comparison_requests, shorten_requests
from stillhouse.accelerate.calibration.record_calibration import record_network_probes, record_pipeline_probes
from stillhouse.accelerate.evaluation.accuracy import VAE_ENCODER
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.evaluate import (
    BaselineRun,
    EvaluationContext,
    evaluate,
    prebuild_artifacts,
    reopen_baseline,
    restore_baseline,
)
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.evaluation.sample_images import SAMPLE_COUNT
from stillhouse.accelerate.options import AccelerateOptions, format_axis_ranges, is_selected, resolve_memory_limit
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, Candidate
from stillhouse.accelerate.records.report import Report, write_report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.resume import load_or_create_report
from stillhouse.accelerate.search.candidates import HEAVY_COMPONENTS, Environment, dominated_reason, plan_candidates
from stillhouse.accelerate.search.mixed_precision import search_mixed_precision
from stillhouse.accelerate.search.pipeline_search import search_pipelines
from stillhouse.accelerate.search.students import copy_student_decoder, student_decoders
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.selection.choose import best_trial, choose_trials
from stillhouse.accelerate.selection.runoff import FINAL_BUDGET, run_final
from stillhouse.accelerate.workspace import Workspace, WorkspaceComponent, original_manifest
from stillhouse.backends.registry import backends
from stillhouse.backends.runtime import BackendStatus
from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import TRIALS, Component

_COMPONENT_ORDER = ("unet", "network", "vae_decoder", "text_encoder", "text_encoder_2", "vae_encoder")
_BUDGET_SHARES = {"unet": 0.4, DECODER: 0.44}
_COMPONENTS_SHARE = 0.48
"""Of a time budget, by when the U-Net, the decoder and the rest are to be done; what is left is for whole pictures."""
_TRIALS_SHARE = 0.95
"""Of a time budget, what trials may take: the views are written after them, and a call is not cut in two."""
_MIN_TIMEOUT = 20.0
"""Seconds that a child may always take for one answer."""

ProgressCallback = Callable[[str, float, float], None]


def run_sweep(
    workspace: Workspace, options: AccelerateOptions, on_progress: ProgressCallback = lambda what, done, total: None
) -> Report:
    """Try everything, choose, and leave a pipeline directory with its evidence.

    KeyboardInterrupt ends it early: what was found is kept and chosen from.
    """
    state = Sweep(workspace, options, on_progress)
    try:
        state.run()
    except KeyboardInterrupt:
        if not state.report.trials:
            raise
    return state.finish()


class Sweep:
    """The state of one sweep: its report, which grows, and its clock."""

    def __init__(self, workspace: Workspace, options: AccelerateOptions, on_progress: ProgressCallback) -> None:
        self.workspace, self.options, self.on_progress = workspace, options, on_progress
        self.start_time = monotonic()
        self.backends = _select_backends(options)
        self.components = _select_components(workspace, options)
        self.report = load_or_create_report(workspace, options)
        self.earlier_seconds = self.report.seconds

    def run(self) -> None:
        """Every component, then whole pictures."""
        probes = self._record_probes()
        if self.workspace.is_pipeline:
            shown = comparison_requests(original_manifest(self.workspace.directory), self.options.requests)[
                :SAMPLE_COUNT
            ]
            self._save_report(replace(self.report, prompts=tuple(request.prompt for request in shown)))
        for part in self.components:
            alone = len(self.components) == 1 or not self.workspace.is_pipeline
            share = 1.0 if alone else _BUDGET_SHARES.get(part.name, _COMPONENTS_SHARE)
            surroundings = Environment(
                backends=self.backends,
                machine=self.report.machine,
                has_torch_modules=(part.graph.parent / "config.json").is_file(),
                has_dynamic_batch=part.has_dynamic_batch,
                threads=self.options.threads or self.report.machine.cores,
                decoder_side=self._decoder_side(part, probes[part.name]),
                device=self.options.device,
                rows=self.options.rows,
                axis_ranges=""
                if self.workspace.is_pipeline
                else format_axis_ranges(self.options.shape_ranges, part.signature.inputs),
            )
            others = student_decoders(self.workspace.directory, self.options.students) if part.name == DECODER else ()
            planned = [
                one for one in plan_candidates(part.name, surroundings, others) if is_selected(one, self.options)
            ]
            self._sweep_component(part, planned, probes[part.name], share)
        if self.workspace.is_pipeline:
            search_pipelines(self)
        self._save_report(replace(self.report, finished=True))

    def finish(self) -> Report:
        """Choose, write the manifest and every view."""
        self._save_report(self.chosen_report())
        apply_choice(self.workspace.directory, self.report)
        return self.report

    @property
    def requests(self) -> Sequence[ImageRequest]:
        """What the user wants drawn; empty: whatever is usual."""
        return self.options.requests

    @property
    def students(self) -> Sequence[str]:
        """Names of the students that are candidates."""
        return self.options.students

    @property
    def threads(self) -> int | None:
        """At most so many for each network."""
        return self.options.threads

    @property
    def timeout(self) -> float:
        """Seconds that a child may take for one answer: as many as were asked for, and no more than are left."""
        return min(self.options.timeout, max(_MIN_TIMEOUT, self.seconds_left()))

    @property
    def memory_limit(self) -> int | None:
        """Bytes that all processes may take together; None where the machine does not tell what it has."""
        return resolve_memory_limit(self.options.memory_limit, self.report.machine)

    def seconds_left(self, share: float = 1.0) -> float:
        """Seconds left of the budget's share, which is for this run alone; infinite without one."""
        if self.options.budget is None:
            return float("inf")
        return share * _TRIALS_SHARE * self.options.budget - (monotonic() - self.start_time)

    def seconds_elapsed(self) -> float:
        """Seconds that the sweep took, those of an earlier run that was cut off included."""
        return self.earlier_seconds + monotonic() - self.start_time

    def add_trial(self, trial: Trial) -> None:
        """Put a trial into the report, in place of an earlier one of the same candidate."""
        key = (trial.candidate.component, trial.candidate.key)
        kept = [one for one in self.report.trials if (one.candidate.component, one.candidate.key) != key]
        self._save_report(replace(self.report, trials=(*kept, trial)))

    def find_trial(self, candidate: Candidate) -> Trial | None:
        """What an earlier run of this sweep found out of the candidate."""
        found = [one for one in self.report.trials_of(candidate.component) if one.candidate.key == candidate.key]
        return next((one for one in found if one.status != "skipped" or one.ratio), None)

    def chosen_report(self) -> Report:
        """The report with its choice among what was tried so far."""
        return choose_trials(self.report, self.options.goal, self.report.bounds)

    def _record_probes(self) -> Mapping[str, Path]:
        folder = self.workspace.directory / TRIALS
        files = {part.name: folder / part.name / PROBES_FILE for part in self.components}
        if not all(path.is_file() for path in files.values()):
            self.on_progress("recording probes", 0, 1)
            if self.workspace.is_pipeline:
                told = record_pipeline_probes(
                    self.workspace.directory, files, self.options.requests, self.options.threads
                )
            else:
                graph = self.workspace.components[0].graph
                told = record_network_probes(
                    graph, files, self.options.inputs, self.options.shapes, all_ones=self.options.all_ones
                )
            self._save_report(replace(self.report, probes={**self.report.probes, **told}))
        return files

    def _sweep_component(
        self, component: WorkspaceComponent, planned: Sequence[Trial | Candidate], probes: Path, share: float
    ) -> None:
        bench = self._evaluation_context(component, probes)
        for one in planned:
            if isinstance(one, Trial) and not self.find_trial(one.candidate):
                self.add_trial(one)
        candidates = [one for one in planned if isinstance(one, Candidate)]
        for candidate in candidates:
            if candidate.recipe == DISTILLED:
                copy_student_decoder(candidate, self.workspace.directory, bench.artifacts)
        if self.seconds_left(share) > 0:
            self.on_progress(f"{component.name}: building", 0, len(candidates))
            prebuild_artifacts(
                [one for one in candidates if not self.find_trial(one)], bench, self.report.machine.cores
            )
        with self._open_baseline(candidates, bench) as reference:
            for number, candidate in enumerate(candidates):
                self.on_progress(f"{component.name}: {candidate.name}", number, len(candidates))
                if not self.find_trial(candidate):
                    self.add_trial(self._evaluate_candidate(candidate, bench, reference, share))
            if reference is not None and reference.process.is_alive:
                for trial in search_mixed_precision(
                    self.report.trials_of(component.name), bench, reference, lambda: self.seconds_left(share)
                ):
                    self.add_trial(trial)
                if component.name in HEAVY_COMPONENTS and self.seconds_left(share) > 0:
                    self.on_progress(f"{component.name}: final", 1, 1)
                    effort = replace(FINAL_BUDGET, seconds=min(FINAL_BUDGET.seconds, self.seconds_left(share)))
                    for trial in run_final(self.report.trials_of(component.name), bench, reference, effort):
                        self.add_trial(trial)

    def _evaluate_candidate(
        self, candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None, share: float
    ) -> Trial:
        """The candidate's trial. A baseline that died before it, or while it was tried, is opened again, and the
        candidate has a second chance: it is not blamed for the other's death."""
        if baseline is None:
            return Trial(candidate, "skipped", "no candidate ran that others could be compared with")
        if slow := dominated_reason(candidate, self.report.trials_of(candidate.component)):
            return Trial(candidate, "skipped", slow)
        trial = Trial(candidate, "skipped", BUDGET_ENDED)
        for _ in range(2):
            if self.seconds_left(share) <= 0:
                return Trial(candidate, "skipped", BUDGET_ENDED)
            context.timeout = self.timeout
            context.timing_budget = replace(
                context.timing_budget, early_stop_ratio=self._early_stop_ratio(candidate.component)
            )
            try:
                if not baseline.process.is_alive:
                    reopen_baseline(baseline, context)
            except CandidateError as failure:
                return Trial(candidate, "skipped", f"the baseline could not be opened again: {failure}")
            trial, _ = evaluate(candidate, context, baseline)
            if trial.status != "failed" or baseline.process.is_alive:
                break
        ended = trial.status == "failed" and self.seconds_left() <= 0
        return Trial(candidate, "skipped", BUDGET_ENDED) if ended else trial

    def _early_stop_ratio(self, component: str) -> float:
        best = best_trial(self.report.trials_of(component), "latency")
        return 0.8 * best.ratio.value if best and best.ratio else 0.0

    @contextmanager
    def _open_baseline(
        self, candidates: Sequence[Candidate], context: EvaluationContext
    ) -> Iterator[BaselineRun | None]:
        """The first candidate that works is what all others are compared with."""
        reference = None
        for candidate in candidates:
            if reference is None and candidate.recipe == "f32" and candidate.precision == "f32":
                reference = self._evaluate_baseline(candidate, context)
        try:
            yield reference
        finally:
            if reference is not None:
                reference.process.kill()

    def _evaluate_baseline(self, candidate: Candidate, context: EvaluationContext) -> BaselineRun | None:
        """The candidate as the baseline, tried now or in an earlier run; None where it does not serve."""
        if self.find_trial(candidate) and (again := restore_baseline(candidate, context)):
            return again
        trial, reference = evaluate(candidate, context, None)
        try:
            self.add_trial(trial)
            if reference is not None:
                baselines = {**self.report.baselines, candidate.component: candidate.key}
                report = replace(self.report, baselines=baselines)
                if not self.workspace.is_pipeline:
                    apply_choice(self.workspace.directory, report)  # from here on the directory can be opened
                self._save_report(report)
        except BaseException:
            if reference is not None:
                reference.process.kill()
            raise
        return reference

    def _evaluation_context(self, component: WorkspaceComponent, probes: Path) -> EvaluationContext:
        return EvaluationContext(
            folder=self.workspace.directory / TRIALS / component.name,
            root=self.workspace.directory,
            graph=component.graph,
            probes=probes,
            bounds=self.report.bounds,
            rows=probe_batch_size(probes),
            pipeline=self.workspace.directory if self.workspace.is_pipeline else None,
            components=self._pipeline_components(),
            defaults=original_manifest(self.workspace.directory).defaults if self.workspace.is_pipeline else None,
            requests=self._comparison_requests(component),
            threads=self.options.threads,
            memory_limit=self.memory_limit,
            timeout=self.timeout,
            timing_budget=self.options.timing_budget
            or (TimingBudget() if component.name in HEAVY_COMPONENTS else TimingBudget(max_rounds=12, seconds=3.0)),
            measure_batches=component.name in HEAVY_COMPONENTS and component.has_dynamic_batch,
        )

    def _pipeline_components(self) -> dict[str, Component]:
        if not self.workspace.is_pipeline:
            return {}
        return {part.name: part.component for part in self.workspace.components}

    def _comparison_requests(self, component: WorkspaceComponent) -> Sequence[ImageRequest]:
        if not self.workspace.is_pipeline or component.name == VAE_ENCODER:
            return ()
        manifest = original_manifest(self.workspace.directory)
        return shorten_requests(manifest, comparison_requests(manifest, self.options.requests))

    def _decoder_side(self, component: WorkspaceComponent, probes: Path) -> int | None:
        """Pixels of the longer side of what a decoder was recorded with."""
        if component.name != DECODER:
            return None
        _, _, *sides = next(iter(read_probes(probes)[0].feeds.values())).shape
        return int(max(sides)) * original_manifest(self.workspace.directory).latent.downscale

    def _save_report(self, report: Report) -> None:
        load = (report.load[0], os.getloadavg()[0])
        self.report = replace(report, seconds=self.seconds_elapsed(), load=load)
        write_report(self.workspace.directory, self.report)


def _select_backends(options: AccelerateOptions) -> dict[str, BackendStatus]:
    """The backends that may be used, by name. InvalidRequest where one was asked for that is not known."""
    known = {status.name: status for status in backends()}
    for name in options.backends:
        check_choice("engine", name, known)
    return {name: status for name, status in known.items() if not options.backends or name in options.backends}


def _select_components(workspace: Workspace, options: AccelerateOptions) -> list[WorkspaceComponent]:
    """The networks to sweep, those first in which the time is spent."""
    for name in options.components:
        check_choice("component", name, [part.name for part in workspace.components])
    parts = [part for part in workspace.components if not options.components or part.name in options.components]
    return sorted(parts, key=lambda part: _COMPONENT_ORDER.index(part.name) if part.name in _COMPONENT_ORDER else 99)


def probe_batch_size(probes: Path) -> int:
    """Samples in one call: the first axis of what has most axes."""
    most = max(read_probes(probes)[0].feeds.values(), key=lambda array: array.ndim)
    return int(most.shape[0]) if most.ndim else 1
