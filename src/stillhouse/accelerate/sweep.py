"""The sweep, which `stillhouse accelerate` runs: measure all candidates and choose the best.

First, every candidate (combination of backend, precision and options) of every network is measured, then whole
pipelines. `report.json` is written after every measurement, and an interrupted sweep resumes from this file.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
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
from stillhouse.accelerate.options import AccelerateOptions, format_axis_ranges, is_selected
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, Candidate
from stillhouse.accelerate.records.report import Report, write_report
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.accelerate.resume import load_or_create_report
from stillhouse.accelerate.search.candidates import HEAVY_COMPONENTS, Environment, dominated_reason, plan_candidates
from stillhouse.accelerate.search.mixed_precision import search_mixed_precision
from stillhouse.accelerate.search.pipeline_search import search_pipelines
from stillhouse.accelerate.search.students import copy_student_decoder, student_decoders
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.accelerate.selection.runoff import run_final
from stillhouse.accelerate.state import ProgressCallback, SweepState
from stillhouse.accelerate.workspace import Workspace, WorkspaceComponent, original_manifest
from stillhouse.backends.registry import backends
from stillhouse.backends.runtime import BackendStatus
from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.pipelines.manifest import TRIALS, Component

_COMPONENT_ORDER = ("denoiser", "network", "decoder", "text_encoder", "text_encoder_2", "encoder")
_BUDGET_SHARES = {"denoiser": 0.4, DECODER: 0.44}
_COMPONENTS_SHARE = 0.48
"""Share of the time budget that ends the measurement of networks without an entry in `_BUDGET_SHARES`, such as text
encoders. The remaining time is for the measurement of whole pictures.
"""


def run_sweep(
    workspace: Workspace, options: AccelerateOptions, on_progress: ProgressCallback = lambda activity, done, total: None
) -> Report:
    """Measure all candidates, choose the best, and write the choice into the manifest of the working directory.

    A candidate is a combination of backend, precision and options. KeyboardInterrupt ends the sweep early with a choice
    among those measured so far, or is raised again if there are none. The returned report is also in `report.json`.

    Args:
        workspace: working directory with the source's networks, from `prepare_workspace`.
        options: goal, limits, and which candidates to try.
        on_progress: called with the current activity before each part of the work.
    """
    sweep = Sweep(workspace, options, on_progress)
    try:
        sweep.run()
    except KeyboardInterrupt:
        if not sweep.report.trials:
            raise
    return sweep.finish()


class Sweep(SweepState):
    """A sweep: records inputs, measures the candidates of all networks and of whole pipelines, and applies the choice.

    A candidate is a combination of backend, precision and options. The base class holds the state. The report is
    written to `report.json` after every change.

    Args:
        workspace: working directory with the source's networks, from `prepare_workspace`.
        options: goal, limits, and which candidates to try.
        on_progress: called with the current activity before each part of the work.
    """

    def __init__(self, workspace: Workspace, options: AccelerateOptions, on_progress: ProgressCallback) -> None:
        start_time = monotonic()  # read before the backends are queried, because the time budget includes the query
        self.backends = _select_backends(options)
        self.components = _select_components(workspace, options)
        super().__init__(workspace, options, load_or_create_report(workspace, options), on_progress)
        self.start_time = start_time
        self.earlier_seconds = self.report.seconds

    def run(self) -> None:
        """Record inputs of every network, measure the candidates of every network, then those of whole pipelines."""
        probes = self._record_probes()
        if self.workspace.is_pipeline:
            sample_requests = comparison_requests(original_manifest(self.workspace.directory), self.options.requests)[
                :SAMPLE_COUNT
            ]
            self.save_report(replace(self.report, prompts=tuple(request.prompt for request in sample_requests)))
        for component in self.components:
            is_only = len(self.components) == 1 or not self.workspace.is_pipeline
            share = 1.0 if is_only else _BUDGET_SHARES.get(component.name, _COMPONENTS_SHARE)
            environment = Environment(
                backends=self.backends,
                machine=self.report.machine,
                has_torch_modules=(component.graph.parent / "config.json").is_file(),
                has_dynamic_batch=component.has_dynamic_batch,
                threads=self.options.threads or self.report.machine.cores,
                decoder_side=self._decoder_side(component, probes[component.name]),
                device=self.options.device,
                rows=self.options.rows,
                axis_ranges=""
                if self.workspace.is_pipeline
                else format_axis_ranges(self.options.shape_ranges, component.signature.inputs),
            )
            extra_candidates = (
                student_decoders(self.workspace.directory, self.options.students) if component.name == DECODER else ()
            )
            planned = [
                candidate
                for candidate in plan_candidates(component.name, environment, extra_candidates)
                if is_selected(candidate, self.options)
            ]
            self._sweep_component(component, planned, probes[component.name], share)
        if self.workspace.is_pipeline:
            search_pipelines(self)
        self.save_report(replace(self.report, finished=True))

    def finish(self) -> Report:
        """Choose the best measured candidates, write the choice into the manifest, and return the report."""
        self.save_report(self.chosen_report())
        apply_choice(self.workspace.directory, self.report)
        return self.report

    def seconds_elapsed(self) -> float:
        """Return the seconds that the sweep has taken so far, including interrupted earlier runs."""
        return self.earlier_seconds + monotonic() - self.start_time

    def _record_probes(self) -> Mapping[str, Path]:
        folder = self.workspace.directory / TRIALS
        files = {component.name: folder / component.name / PROBES_FILE for component in self.components}
        if not all(path.is_file() for path in files.values()):
            self.on_progress("recording probes", 0, 1)
            if self.workspace.is_pipeline:
                notes = record_pipeline_probes(
                    self.workspace.directory, files, self.options.requests, self.options.threads
                )
            else:
                graph = self.workspace.components[0].graph
                notes = record_network_probes(
                    graph, files, self.options.inputs, self.options.shapes, all_ones=self.options.all_ones
                )
            self.save_report(replace(self.report, probes={**self.report.probes, **notes}))
        return files

    def _sweep_component(
        self, component: WorkspaceComponent, planned: Sequence[Trial | Candidate], probes: Path, share: float
    ) -> None:
        context = self._evaluation_context(component, probes)
        for item in planned:
            if isinstance(item, Trial) and not self.find_trial(item.candidate):
                self.add_trial(item)
        candidates = [item for item in planned if isinstance(item, Candidate)]
        for candidate in candidates:
            if candidate.recipe == DISTILLED:
                copy_student_decoder(candidate, self.workspace.directory, context.artifacts)
        if self.seconds_left(share) > 0:
            self.on_progress(f"{component.name}: building", 0, len(candidates))
            prebuild_artifacts(
                [item for item in candidates if not self.find_trial(item)], context, self.report.machine.cores
            )
        with self._open_baseline(candidates, context) as baseline:
            for number, candidate in enumerate(candidates):
                self.on_progress(f"{component.name}: {candidate.name}", number, len(candidates))
                if not self.find_trial(candidate):
                    self.add_trial(self._evaluate_candidate(candidate, context, baseline, share))
            if baseline is not None and baseline.process.is_alive:
                for trial in search_mixed_precision(
                    self.report.trials_of(component.name), context, baseline, lambda: self.seconds_left(share)
                ):
                    self.add_trial(trial)
                if component.name in HEAVY_COMPONENTS and self.seconds_left(share) > 0:
                    self.on_progress(f"{component.name}: final", 1, 1)
                    final_budget = self.options.final_timing_budget
                    timing_budget = replace(final_budget, seconds=min(final_budget.seconds, self.seconds_left(share)))
                    for trial in run_final(self.report.trials_of(component.name), context, baseline, timing_budget):
                        self.add_trial(trial)

    def _evaluate_candidate(
        self, candidate: Candidate, context: EvaluationContext, baseline: BaselineRun | None, share: float
    ) -> Trial:
        """Measure a candidate next to the baseline, and return its trial (measurements and verdict).

        Restart the baseline's process if it is dead. If this process dies during a failed evaluation, evaluate the
        candidate a second time, because the baseline may have caused the failure. The trial is "skipped" without a
        baseline, without time left, and where `dominated_reason` expects no gain.

        Args:
            candidate: candidate to measure.
            context: inputs and limits of the measurements of this network.
            baseline: open f32 baseline of this network; None: the candidate is skipped.
            share: share of the time budget in which candidates of this network are measured.
        """
        if baseline is None:
            return Trial(candidate, "skipped", "no baseline candidate ran")
        if reason := dominated_reason(candidate, self.report.trials_of(candidate.component)):
            return Trial(candidate, "skipped", reason)
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
        is_out_of_time = trial.status == "failed" and self.seconds_left() <= 0
        return Trial(candidate, "skipped", BUDGET_ENDED) if is_out_of_time else trial

    def _early_stop_ratio(self, component: str) -> float:
        best = best_trial(self.report.trials_of(component), "latency")
        return 0.8 * best.ratio.value if best and best.ratio else 0.0

    @contextmanager
    def _open_baseline(
        self, candidates: Sequence[Candidate], context: EvaluationContext
    ) -> Iterator[BaselineRun | None]:
        """Yield the first f32 candidate that runs, with its process open for comparison; None where no candidate runs.

        The process is killed when the `with` statement ends.
        """
        baseline = None
        for candidate in candidates:
            if baseline is None and candidate.recipe == "f32" and candidate.precision == "f32":
                baseline = self._evaluate_baseline(candidate, context)
        try:
            yield baseline
        finally:
            if baseline is not None:
                baseline.process.kill()

    def _evaluate_baseline(self, candidate: Candidate, context: EvaluationContext) -> BaselineRun | None:
        """Open a candidate as the baseline, evaluate it unless an earlier run did, and return it; None if it fails."""
        if self.find_trial(candidate) and (restored := restore_baseline(candidate, context)):
            return restored
        trial, baseline = evaluate(candidate, context, None)
        try:
            self.add_trial(trial)
            if baseline is not None:
                baselines = {**self.report.baselines, candidate.component: candidate.key}
                report = replace(self.report, baselines=baselines)
                if not self.workspace.is_pipeline:
                    # This writes the manifest early: other commands can open the directory even if the sweep fails.
                    apply_choice(self.workspace.directory, report)
                self.save_report(report)
        except BaseException:
            if baseline is not None:
                baseline.process.kill()
            raise
        return baseline

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
        return {component.name: component.component for component in self.workspace.components}

    def _comparison_requests(self, component: WorkspaceComponent) -> Sequence[ImageRequest]:
        if not self.workspace.is_pipeline or component.name == VAE_ENCODER:
            return ()
        manifest = original_manifest(self.workspace.directory)
        return shorten_requests(manifest, comparison_requests(manifest, self.options.requests))

    def _decoder_side(self, component: WorkspaceComponent, probes: Path) -> int | None:
        """Return the longer side in pixels of the picture that the first recorded decoder call decodes.

        The result is None for components other than the decoder. `probes` is the file of the recorded inputs.
        """
        if component.name != DECODER:
            return None
        _, _, *sides = next(iter(read_probes(probes)[0].feeds.values())).shape
        return int(max(sides)) * original_manifest(self.workspace.directory).latent.downscale

    def save_report(self, report: Report) -> None:
        """Replace the report, update its duration and load average, and write it to `report.json`."""
        load = (report.load[0], os.getloadavg()[0])
        self.report = replace(report, seconds=self.seconds_elapsed(), load=load)
        write_report(self.workspace.directory, self.report)


def _select_backends(options: AccelerateOptions) -> dict[str, BackendStatus]:
    """Return the status (version, devices, or why it is missing) of each backend to try, by name.

    Raises:
        InvalidRequest: an unknown backend was requested.
    """
    available = {status.name: status for status in backends()}
    for name in options.backends:
        check_choice("backend", name, available)
    return {name: status for name, status in available.items() if not options.backends or name in options.backends}


def _select_components(workspace: Workspace, options: AccelerateOptions) -> list[WorkspaceComponent]:
    """Return the networks to measure, the most expensive first.

    Raises:
        InvalidRequest: the options name an unknown network.
    """
    for name in options.components:
        check_choice("component", name, [component.name for component in workspace.components])
    components = [
        component
        for component in workspace.components
        if not options.components or component.name in options.components
    ]
    return sorted(
        components,
        key=lambda component: _COMPONENT_ORDER.index(component.name) if component.name in _COMPONENT_ORDER else 99,
    )


def probe_batch_size(probes: Path) -> int:
    """Return the batch size of the inputs recorded in a file: the first axis of the input of highest rank.

    The result is 1 where all inputs are scalars.
    """
    tensor = max(read_probes(probes)[0].feeds.values(), key=lambda array: array.ndim)
    return int(tensor.shape[0]) if tensor.ndim else 1
