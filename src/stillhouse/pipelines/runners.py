"""The open networks of a pipeline. Each network is opened on first use, as the manifest says."""

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
"""Largest number of opened networks that a pipeline keeps; a network counts once for each set of shapes that it is
opened for."""


def override_manifest(
    manifest: Manifest,
    components: Mapping[str, Component],
    defaults: Defaults | None = None,
    step_cache: StepCache | None = None,
) -> Manifest:
    """Return the manifest with some networks, the defaults or the step cache replaced; None replaces nothing.

    The step cache (graphs for feature caching) was split from the denoiser's graph. Where `components` has another
    graph for the denoiser and `step_cache` is None, the result has no step cache. Without a step cache, the default
    cache_interval is 1, so that every step runs the whole denoiser.

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
    """The networks of a pipeline, which are opened on first use; the least recently used are closed (`MAX_OPEN`).

    Args:
        directory: directory of the pipeline; paths of graphs are relative to this directory.
        manifest: manifest of the pipeline.
        options: gives threads and cache only; threads None: as in the manifest.
        backend: backend of every network; None: as in the manifest.
        precision: precision of the denoiser; None: as in the manifest.
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
        """Return the opened network of a role, to be called with its inputs. The first call opens the network.

        `name` is the role of the network, or of a graph that the denoiser was split into. `shapes` are the shapes of
        the inputs by name, for which a static network is opened.
        """
        component = self._component(name, shapes)
        key = (name, tuple(opening_shapes(component, shapes).items()))
        with self._opening:
            if key in self._open:
                # The runner moves to the end, so that the first runner is always the least recently used.
                self._open[key] = self._open.pop(key)
            else:
                while len(self._open) >= MAX_OPEN:
                    del self._open[next(iter(self._open))]
                runner = open_component(self._directory, component, shapes, self._options)
                if self._adapters:
                    self._adapters.apply(name, runner)
                self._open[key] = runner
            return self._open[key]

    def set_adapters(self, adapters: Sequence[str]) -> None:
        """Replace the active LoRA adapters by these files, each `FILE` or `FILE:WEIGHT`; empty: remove all adapters.

        The weights of open networks are changed at once. Networks that are opened later get the adapters when they are
        opened, and may raise ImportFailed then.

        Raises:
            ImportFailed: a file is not LoRA, or does not fit a network; the previous adapters stay active.
            InvalidRequest: a network cannot take adapters; the previous adapters stay active.
            BackendFailed: a backend failed to change weights; the previous weights are restored if possible.
        """
        if adapters and self._manifest.step_cache:
            raise InvalidRequest(
                f"{self._manifest.name} takes no adapters, because its denoiser is split for feature caching",
                allowed="adapters on pipelines whose denoiser is not split",
                fix="fuse them with `stillhouse import MODEL --lora FILE:WEIGHT`, and accelerate the result",
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
                with suppress(StillhouseError):  # an error here must not replace the error that is raised below
                    self._apply_adapters(active)
                raise
            self._adapters = active

    def _apply_adapters(self, active: "ActiveAdapters") -> None:
        for (name, _), runner in self._open.items():
            active.apply(name, runner)

    def batch_sizes(self, name: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[int, ...]:
        """Return the static batch sizes of the network of a role, rising; empty: the network takes any size.

        `shapes` are the shapes of its inputs by name; None: those of pictures of the default size.
        """
        return component_batch_sizes(self._component(name, shapes))

    def graph(self, name: str) -> Path:
        """Return the path of the graph of the network of a role."""
        return self._directory / self._component(name).graph

    def arrays(self) -> Arrays:
        """Return the kind of arrays that latents are kept in: arrays on the denoiser's device, or NumPy arrays.

        Where the denoiser is split for feature caching, latents are NumPy arrays, as the cached features.

        Raises:
            RuntimeMissing, InvalidRequest: the backend is not installed, or its device does not exist.
        """
        if self._manifest.step_cache:
            return NUMPY
        component = self._component(DENOISER)
        arrays: Arrays | None = device_arrays(component.backend, component.settings)
        return arrays or NUMPY

    def backend_errors(self, verb: str) -> AbstractContextManager[None]:
        """Return a context manager in which exceptions of the denoiser's runtime become BackendFailed.

        `verb`, such as "run", becomes part of the error's message: the backend could not run the graph.
        """
        component = self._component(DENOISER)
        return translate_errors(component.backend, self._directory / component.graph, verb)

    def _component(self, name: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Component:
        """Return how the network of a role is run on inputs of these shapes; None: on those of the default size."""
        is_denoiser = name in (DENOISER, DENOISER_FULL, DENOISER_SHALLOW)
        component = self._manifest.components[DENOISER if is_denoiser else name]
        if split := self._manifest.step_cache:
            graphs = {DENOISER_FULL: split.full, DENOISER_SHALLOW: split.shallow}
            component = replace(component, graph=graphs.get(name, component.graph))
        if self._backend not in (None, component.backend):
            # The manifest's settings and precision are left out, because they were chosen for the manifest's backend.
            component = Component(component.graph, component.weights, self._backend or component.backend)
        if component.settings.get("axes") == "default":
            is_default = shapes is None or self._have_default_size(shapes)
            component = replace(
                component,
                static=component.static and is_default,
                settings={**component.settings, "axes": "fixed" if is_default else "open"},
            )
        return replace(component, precision=self._precision) if self._precision and is_denoiser else component

    def _have_default_size(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether inputs of these shapes by name have latents of a picture of the pipeline's default size."""
        defaults, downscale = self._manifest.defaults, self._manifest.latent.downscale
        side = (defaults.height // downscale, defaults.width // downscale)
        return any(len(shape) == 4 and shape[2:] == side for shape in shapes.values())


def opening_shapes(component: Component, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by input name for which a network is opened; empty where the network takes any shapes.

    With several streams (rows that run in parallel), these are the shapes of one row, unless the component's setting
    `axes` is open. Where a network that is opened
    for the largest batch also runs smaller batches, these are the shapes of the largest batch.

    Args:
        component: how the network is run.
        shapes: shapes of the inputs that it is to be called with, by name.
    """
    if component.streams > 1 and component.settings.get("axes") == "open":
        return {}
    if component.streams > 1:
        return {name: (1, *shape[1:]) if shape else () for name, shape in shapes.items()}
    scope = compiles_per(component.backend, component.settings) if component.static else "never"
    if scope == "batch":
        most = component_batch_sizes(component)[-1]
        return {name: (most, *shape[1:]) if shape else () for name, shape in shapes.items()}
    return dict(shapes) if scope == "shape" else {}


def reopens_per_batch_size(component: Component) -> bool:
    """Return whether the network of a component is opened and compiled anew for each batch size."""
    compiles = component.settings.get("compile", "none") != "none"
    return component.static and (compiles or compiles_per(component.backend, component.settings) == "shape")


def component_batch_sizes(component: Component) -> tuple[int, ...]:
    """Return the static batch sizes of the network of a component, rising; empty: the network takes any size."""
    return (component.rows or DEFAULT_SIZES) if component.static and component.streams == 1 else ()


def open_component(
    directory: Path, component: Component, shapes: Mapping[str, tuple[int, ...]], options: RunnerOptions
) -> Runner:
    """Open a network of a pipeline directory and return its runner, which is called with inputs by name.

    `component` gives the network's graph, backend and precision. `shapes` are the shapes of the inputs by name, for
    which a static network is opened. Of `options`, only threads (None: as in `component`) and cache are used.
    """
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
