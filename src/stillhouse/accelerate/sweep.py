"""The sweep, which `stillhouse accelerate` runs: measure all candidates and choose the best.

First, every candidate (combination of backend, precision and options) of every network is measured, then whole
pipelines. `report.json` is written after every measurement, and an interrupted sweep resumes from this file.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

from stillhouse.accelerate.calibration.calibration_data import read_probes
from stillhouse.accelerate.calibration.other_inputs import OtherInputs, write_other_inputs
from stillhouse.accelerate.calibration.other_shapes import shape_arguments
from stillhouse.accelerate.calibration.prompts import comparison_requests, has_oracle, is_heavy, shorten_requests
from stillhouse.accelerate.calibration.record_calibration import (
    InputFiles,
    input_files,
    record_network_inputs,
    record_pipeline_inputs,
)
from stillhouse.accelerate.component_sweep import ComponentSweep
from stillhouse.accelerate.evaluation.accuracy import VAE_ENCODER
from stillhouse.accelerate.evaluation.baseline import RANDOM
from stillhouse.accelerate.evaluation.context import EvaluationContext
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.evaluation.sample_images import SAMPLE_COUNT
from stillhouse.accelerate.options import AccelerateOptions, format_axis_ranges
from stillhouse.accelerate.records.candidate import DECODER
from stillhouse.accelerate.records.report import Report, write_report
from stillhouse.accelerate.resume import load_or_create_report
from stillhouse.accelerate.search.candidates import HEAVY_COMPONENTS, Environment
from stillhouse.accelerate.search.pipeline_search import search_pipelines
from stillhouse.accelerate.search.students import student_decoders
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.state import ProgressCallback, SweepState
from stillhouse.accelerate.workspace import Workspace, WorkspaceComponent, original_manifest
from stillhouse.backends.registry import backends
from stillhouse.backends.runtime import BackendStatus
from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.manifest import TRIALS, Component

_COMPONENT_ORDER = ("denoiser", "network", "decoder", "text_encoder", "text_encoder_2", "encoder")
_BUDGET_SHARES = {"denoiser": 0.33, DECODER: 0.38, "": 0.42}
"""Share of the time budget at whose end the measurement of a network of a pipeline ends; "": of any other network, such
as a text encoder. The remaining time is for the measurement of whole pictures."""
_HEAVY_BUDGET_SHARES = {"denoiser": 0.45, DECODER: 0.7, "": 0.75}
"""The same shares for a model whose steps take seconds: each candidate takes minutes, and few pictures are compared."""
_SCORED_BUDGET_SHARES = {"denoiser": 0.25, DECODER: 0.32, "": 0.36}
"""The same shares where a program (oracle) scores pictures, since scores take hundreds of pictures."""


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
        self.all_backends = {status.name: status for status in backends()}
        self.backends = _select_backends(self.all_backends, options)
        self.components = _select_components(workspace, options)
        super().__init__(workspace, options, load_or_create_report(workspace, options), on_progress)
        self.start_time = start_time
        self.earlier_seconds = self.report.seconds

    def run(self) -> None:
        """Record inputs of every network, measure the candidates of every network, then those of whole pipelines."""
        with self.activity("recording"):
            files = self._record_inputs()
        if self.workspace.is_pipeline:
            sample_requests = comparison_requests(original_manifest(self.workspace.directory), self.options.requests)[
                :SAMPLE_COUNT
            ]
            self.save_report(replace(self.report, prompts=tuple(request.prompt for request in sample_requests)))
        for component in self.components:
            for name, kind in component.signature.skipped_outputs.items():
                self.add_warning(f"{component.name}: output {name} is left out and not compared: it is a {kind}")
            self._sweep_component(component, files[component.name])
        if self.workspace.is_pipeline:
            with self.activity("comparing pictures"):
                search_pipelines(self)
        self.save_report(replace(self.report, finished=True))

    def _sweep_component(self, component: WorkspaceComponent, files: InputFiles) -> None:
        reason = ComponentSweep(
            self,
            component.name,
            self._environment(component, files),
            self._evaluation_context(component, files),
            self.all_backends,
            student_decoders(self.workspace.directory, self.options.students) if component.name == DECODER else (),
            self._budget_share(component.name),
        ).run()
        if reason:
            self.add_warning(f"nothing was chosen for {component.name}: {reason}")
            has_failed = any(trial.status == "failed" for trial in self.report.trials_of(component.name))
            would_shapes_help = " could not open " not in reason and RANDOM not in reason
            if has_failed and would_shapes_help and not self.workspace.is_pipeline and self._guessed_shapes():
                self._refuse_guessed_shapes(component, files, reason)

    def _budget_share(self, component: str) -> float:
        """Return the share of the time budget at whose end the measurement of a network ends."""
        if not self.workspace.is_pipeline:
            return 1.0
        manifest = original_manifest(self.workspace.directory)
        shares = _HEAVY_BUDGET_SHARES if is_heavy(manifest) else _BUDGET_SHARES
        if has_oracle(manifest):
            shares = _SCORED_BUDGET_SHARES
        return shares.get(component, shares[""])

    def _environment(self, component: WorkspaceComponent, files: InputFiles) -> Environment:
        return Environment(
            backends=self.backends,
            machine=self.report.machine,
            has_torch_modules=(component.graph.parent / "config.json").is_file(),
            has_dynamic_batch=component.has_dynamic_batch,
            threads=self.options.threads or self.report.machine.cores,
            decoder_side=self._decoder_side(component, files.probes),
            device=self.options.device,
            rows=self.options.rows,
            has_calibration=files.calibration.is_file(),
            has_integer_weights=component.signature.is_quantised,
            axis_ranges=""
            if self.workspace.is_pipeline
            else format_axis_ranges(self.options.shape_ranges, component.signature.inputs),
        )

    def _write_other_inputs(self, component: WorkspaceComponent, files: InputFiles) -> OtherInputs:
        if self.workspace.is_pipeline:
            return OtherInputs()
        ranges = {name: ends for name, ends in self.options.shape_ranges.items() if ends[0] != ends[1]}
        has_user_inputs = self.options.inputs is not None
        return write_other_inputs(component.graph, files.probes, ranges, has_user_inputs=has_user_inputs)

    def _guessed_shapes(self) -> bool:
        """Return whether shapes of a single ONNX file were guessed: neither inputs nor all open shapes were given."""
        inputs = self.workspace.components[0].signature.inputs
        open_inputs = {name for name, axes in inputs.items() if not all(isinstance(axis, int) for axis in axes)}
        return self.options.inputs is None and bool(open_inputs - set(self.options.shapes))

    def _refuse_guessed_shapes(self, component: WorkspaceComponent, files: InputFiles, reason: str) -> None:
        shapes = {name: array.shape for name, array in read_probes(files.probes)[0].feeds.items()}
        raise InvalidRequest(
            f"{component.graph.name} does not run with the guessed shapes "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())}: {reason}",
            allowed="shapes for which the network works",
            fix=f"give them, such as {shape_arguments(shapes)}, or real inputs by --inputs FILE.npz",
        )

    def finish(self) -> Report:
        """Choose the best measured candidates, write the choice into the manifest, and return the report."""
        self.save_report(self.chosen_report())
        if not self.workspace.is_pipeline:
            self._warn_of_static_shapes()
        apply_choice(self.workspace.directory, self.report)
        return self.report

    def _warn_of_static_shapes(self) -> None:
        """Warn if the chosen way to run a single ONNX file is compiled for one shape while the file allows others."""
        (component,) = self.workspace.components
        key = self.report.chosen.get(component.name)
        trial = self.report.trial(component.name, key) if key else None
        is_static = trial is not None and trial.candidate.options.get("shapes") == "static"
        if is_static and any(
            not isinstance(axis, int) for axes in component.signature.inputs.values() for axis in axes
        ):
            probes = read_probes(input_files(self.workspace.directory / TRIALS / component.name).probes)
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in probes[0].feeds.items())
            self.add_warning(
                f"{component.name}: the choice was measured for {shapes}; other shapes that the file allows work, and "
                "the first call with each of them compiles the network again"
            )

    def seconds_elapsed(self) -> float:
        """Return the seconds that the sweep has taken so far, including interrupted earlier runs."""
        return self.earlier_seconds + monotonic() - self.start_time

    def _record_inputs(self) -> Mapping[str, InputFiles]:
        """Record probes and calibration data of every network, unless an earlier run did, and return their files."""
        folder = self.workspace.directory / TRIALS
        files = {component.name: input_files(folder / component.name) for component in self.components}
        if all(paths.probes.is_file() for paths in files.values()):
            return files
        self.on_progress("recording inputs", 0, 1)
        options = self.options
        if self.workspace.is_pipeline:
            notes = record_pipeline_inputs(
                self.workspace.directory, files, options.requests, options.threads, self.timeout
            )
        else:
            ((name, paths),) = files.items()
            graph = self.workspace.components[0].graph
            notes = {
                name: record_network_inputs(
                    graph, paths, options.inputs, options.shapes, all_ones=options.all_ones, pixels=options.pixels
                )
            }
        self.save_report(replace(self.report, probes={**self.report.probes, **notes}))
        return files

    def _evaluation_context(self, component: WorkspaceComponent, files: InputFiles) -> EvaluationContext:
        return EvaluationContext(
            folder=self.workspace.directory / TRIALS / component.name,
            root=self.workspace.directory,
            graph=component.graph,
            probes=files.probes,
            calibration=files.calibration if files.calibration.is_file() else None,
            bounds=self.report.bounds,
            rows=probe_batch_size(files.probes),
            pipeline=self.workspace.directory if self.workspace.is_pipeline else None,
            components=self._pipeline_components(),
            defaults=original_manifest(self.workspace.directory).defaults if self.workspace.is_pipeline else None,
            requests=self._comparison_requests(component),
            threads=self.options.threads,
            memory_limit=self.memory_limit,
            command_timeout=self.options.timeout,
            deadline=self.deadline,
            timing_budget=self.options.timing_budget
            or (TimingBudget() if component.name in HEAVY_COMPONENTS else TimingBudget(max_rounds=12, seconds=3.0)),
            measure_batches=component.name in HEAVY_COMPONENTS and component.has_dynamic_batch,
            has_open_batch=component.has_dynamic_batch,
            other_inputs=self._write_other_inputs(component, files),
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


def _select_backends(available: Mapping[str, BackendStatus], options: AccelerateOptions) -> dict[str, BackendStatus]:
    """Return the status (version, devices, or why it is missing) of each backend to try, by name.

    Raises:
        InvalidRequest: an unknown backend was requested.
    """
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
