"""The networks of a pipeline. Each is opened on first use, as the manifest says; at most `MAX_OPEN` stay open."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from stillhouse.backends.registry import compiles_per, device_arrays, open_runner
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import translate_errors
from stillhouse.check import check_choice
from stillhouse.diffusion import NUMPY, Arrays
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache
from stillhouse.pipelines.roles import DENOISER, DENOISER_FULL, DENOISER_SHALLOW

if TYPE_CHECKING:
    from stillhouse.pipelines.adapters import ActiveAdapters

MAX_OPEN = 16
"""Most runners that stay open; a network has one runner for each set of shapes for which it is opened."""


def override_manifest(
    manifest: Manifest,
    components: Mapping[str, Component],
    defaults: Defaults | None = None,
    step_cache: StepCache | None = None,
) -> Manifest:
    """Return the manifest with some components, the defaults or the step cache replaced.

    The manifest's step cache was split from its denoiser's graph. Where `components` has another graph for the denoiser
    and `step_cache` is None, the step cache is dropped, and every step runs the whole denoiser.

    Raises:
        InvalidRequest: `components` has a role that the manifest does not have.
    """
    for name in components:
        check_choice("component", name, manifest.components)
    joined = {**manifest.components, **components}
    if step_cache is None and (
        DENOISER not in components or joined[DENOISER].graph == manifest.components[DENOISER].graph
    ):
        step_cache = manifest.step_cache
    defaults = defaults or manifest.defaults
    if step_cache is None:
        defaults = replace(defaults, cache_interval=1)
    return replace(manifest, components=joined, defaults=defaults, step_cache=step_cache)


class Runners:
    """The networks of a pipeline.

    Args:
        directory: directory of the pipeline; paths of graphs are relative to it.
        manifest: manifest of the pipeline.
        options: threads and cache; threads None: as in the manifest.
        backend: replaces the manifest's backend of every component.
        precision: replaces the manifest's precision of the denoiser.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        options: RunnerOptions,
        *,
        backend: str | None = None,
        precision: str | None = None,
    ) -> None:
        self._directory, self._manifest, self._options = directory, manifest, options
        self._backend, self._precision = backend, precision
        self._open: dict[tuple[str, object], Runner] = {}
        self._opening = Lock()
        self._adapters: ActiveAdapters | None = None

    def get(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Runner:
        """Return the runner of a network, opened at the first call.

        Args:
            name: role of a component, or of a depth of the denoiser.
            shapes: shapes of the inputs, by name; see `opening_shapes`.
        """
        component = self._component(name)
        key = (name, tuple(opening_shapes(component, shapes).items()))
        with self._opening:
            if key in self._open:
                self._open[key] = self._open.pop(key)  # keeps the order of last use
            else:
                while len(self._open) >= MAX_OPEN:
                    del self._open[next(iter(self._open))]
                runner = open_component(self._directory, component, shapes, self._options)
                if self._adapters:
                    self._adapters.apply(name, runner)
                self._open[key] = runner
            return self._open[key]

    def set_adapters(self, adapters: Sequence[str]) -> None:
        """Replace the active LoRA adapters; see `adapters`.

        Networks that are opened later get the adapters when they are opened, and may raise ImportFailed then.

        Raises:
            ImportFailed, InvalidRequest: see `read_adapters`; the previous adapters stay active.
            BackendFailed: a backend failed to change weights; the previous weights are restored if possible.
        """
        if adapters and self._manifest.step_cache:
            raise InvalidRequest(
                f"adapters on {self._manifest.name}, whose denoiser is split in two depths for step caching",
                allowed="pipelines with a whole denoiser",
                fix="fuse them with `stillhouse import MODEL --lora FILE:WEIGHT`, and accelerate that",
            )
        from stillhouse.pipelines.adapters import (  # imported on use, because pipelines.adapters needs torch
            ActiveAdapters,
            read_adapters,
        )

        active = self._adapters or ActiveAdapters()
        read = read_adapters(adapters, {name: self._component(name) for name in self._manifest.components})
        with self._opening:
            before, active.adapters = active.adapters, read
            try:
                self._apply_adapters(active)
            except StillhouseError:
                active.adapters = before
                with suppress(StillhouseError):  # only the first failure is raised
                    self._apply_adapters(active)
                raise
            self._adapters = active

    def _apply_adapters(self, active: "ActiveAdapters") -> None:
        for (name, _), runner in self._open.items():
            active.apply(name, runner)

    def batch_sizes(self, name: str) -> tuple[int, ...]:
        """Return the batch sizes that a network is opened for; empty: any size."""
        return component_batch_sizes(self._component(name))

    def graph(self, name: str) -> Path:
        """Return the path of a network's graph."""
        return self._directory / self._component(name).graph

    def arrays(self) -> Arrays:
        """Return the kind of arrays that latents are kept in: arrays on the denoiser's device, or NumPy arrays.

        With a step cache they are NumPy arrays, because cached features are NumPy arrays.

        Raises:
            RuntimeMissing, InvalidRequest: the backend is not installed, or its device does not exist.
        """
        if self._manifest.step_cache:
            return NUMPY
        component = self._component(DENOISER)
        arrays: Arrays | None = device_arrays(component.backend, component.settings)
        return arrays or NUMPY

    def backend_errors(self, verb: str) -> AbstractContextManager[None]:
        """Return a context that turns exceptions into errors of the backend; see `runtime.translate_errors`."""
        component = self._component(DENOISER)
        return translate_errors(component.backend, self._directory / component.graph, verb)

    def _component(self, name: str) -> Component:
        is_denoiser = name in (DENOISER, DENOISER_FULL, DENOISER_SHALLOW)
        component = self._manifest.components[DENOISER if is_denoiser else name]
        if split := self._manifest.step_cache:
            graphs = {DENOISER_FULL: split.full, DENOISER_SHALLOW: split.shallow}
            component = replace(component, graph=graphs.get(name, component.graph))
        if self._backend not in (None, component.backend):
            # Options and precision of the manifest are dropped: they were chosen for another backend than this one.
            component = Component(component.graph, component.weights, self._backend or component.backend)
        return replace(component, precision=self._precision) if self._precision and is_denoiser else component


def opening_shapes(component: Component, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes for which a component is opened, given the shapes of its inputs; empty for dynamic shapes.

    With several streams, they are the shapes of one row. Where a network that is opened for the largest batch also runs
    smaller batches, they are the shapes of the largest batch.
    """
    if component.streams > 1:
        return {name: (1, *shape[1:]) if shape else () for name, shape in shapes.items()}
    scope = compiles_per(component.backend, component.settings) if component.static else "never"
    if scope == "batch":
        most = component_batch_sizes(component)[-1]
        return {name: (most, *shape[1:]) if shape else () for name, shape in shapes.items()}
    return dict(shapes) if scope == "shape" else {}


def reopens_per_batch_size(component: Component) -> bool:
    """Return whether a component is opened anew for each batch size."""
    compiles = component.settings.get("compile", "none") != "none"
    return component.static and (compiles or compiles_per(component.backend, component.settings) == "shape")


def component_batch_sizes(component: Component) -> tuple[int, ...]:
    """Return the batch sizes that a component is opened for; empty: any size."""
    return (component.rows or DEFAULT_SIZES) if component.static and component.streams == 1 else ()


def open_component(
    directory: Path, component: Component, shapes: Mapping[str, tuple[int, ...]], options: RunnerOptions
) -> Runner:
    """Open a component for inputs of these shapes; `options` gives only threads and cache."""
    component_options = replace(
        options,
        precision=component.precision,
        threads=options.threads or component.threads,
        shapes=opening_shapes(component, shapes),
        static=component.static,
        batch_sizes=component_batch_sizes(component),
        streams=component.streams,
        settings=component.settings,
    )
    return open_runner(directory / component.graph, component.backend, component_options)
