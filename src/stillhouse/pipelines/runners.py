"""The networks of one pipeline: opened when first needed, as its manifest says, and kept open within bounds."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from stillhouse.backends.registry import device_arrays, open_runner, reopen_scope
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import translate_errors
from stillhouse.check import check_choice
from stillhouse.diffusion import NUMPY, Arrays
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache

if TYPE_CHECKING:
    from stillhouse.pipelines.adapters import ActiveAdapters

MAX_OPEN = 16
"""Networks that are kept open: each counts once for every shape that it is opened for."""
UNET, FULL, SHALLOW = "unet", "unet_full", "unet_shallow"
"""The U-Net, and its two depths where it is cut for step caching."""


def override_manifest(
    manifest: Manifest,
    components: Mapping[str, Component],
    defaults: Defaults | None = None,
    step_cache: StepCache | None = None,
) -> Manifest:
    """The manifest with some of its components, its defaults or its step cache replaced.

    The manifest's own step cache is left out where another graph takes the U-Net's place, which it was not cut from;
    every step of such a pipeline is a full one.

    Raises:
        InvalidRequest: a component that the manifest does not have.
    """
    for name in components:
        check_choice("component", name, manifest.components)
    joined = {**manifest.components, **components}
    if step_cache is None and (UNET not in components or joined[UNET].graph == manifest.components[UNET].graph):
        step_cache = manifest.step_cache
    defaults = defaults or manifest.defaults
    if step_cache is None:
        defaults = replace(defaults, cache_interval=1)
    return replace(manifest, components=joined, defaults=defaults, step_cache=step_cache)


class Runners:
    """The networks of a pipeline.

    Args:
        directory: graphs are relative to it.
        manifest: says how each is run.
        options: threads, where they are given, go before the manifest's.
        backend: for every component, instead of the manifest's.
        precision: for the U-Net, instead of the manifest's.
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
        """The network of that name, opened at the first call.

        Args:
            name: a component of the manifest, or one of the U-Net's depths.
            shapes: what it will be fed. It is opened for the shapes of a row where its rows run apart; where it is
                static for these very shapes, or for these with all sizes of batches; and once for all otherwise.
        """
        asked = self._component(name)
        key = (name, tuple(opening_shapes(asked, shapes).items()))
        with self._opening:
            if key in self._open:
                self._open[key] = self._open.pop(key)  # the one that was not used for longest comes first
            else:
                while len(self._open) >= MAX_OPEN:
                    del self._open[next(iter(self._open))]
                runner = open_component(self._directory, asked, shapes, self._options)
                if self._adapters:
                    self._adapters.apply(name, runner)
                self._open[key] = runner
            return self._open[key]

    def set_adapters(self, adapters: Sequence[str]) -> None:
        """Change the networks' weights by these LoRA files and no others; see `adapters`.

        Raises:
            ImportFailed, InvalidRequest: see `read_adapters`; what was worn before is worn still. A network that is not
                open yet refuses what was made for another one when it is opened.
            BackendFailed: an engine cannot change its weights; it is asked to put back what was worn before.
        """
        if adapters and self._manifest.step_cache:
            raise InvalidRequest(
                f"adapters on {self._manifest.name}, whose U-Net is cut in two depths for step caching",
                allowed="pipelines that run it whole",
                fix="fuse them with `stillhouse import MODEL --lora FILE:WEIGHT`, and accelerate that",
            )
        from stillhouse.pipelines.adapters import (  # here and not above, because that file needs torch
            ActiveAdapters,
            read_adapters,
        )

        worn = self._adapters or ActiveAdapters()
        read = read_adapters(adapters, {name: self._component(name) for name in self._manifest.components})
        with self._opening:
            before, worn.adapters = worn.adapters, read
            try:
                self._apply_adapters(worn)
            except StillhouseError:
                worn.adapters = before
                with suppress(StillhouseError):  # the first failure is the one that tells
                    self._apply_adapters(worn)
                raise
            self._adapters = worn

    def _apply_adapters(self, worn: "ActiveAdapters") -> None:
        for (name, _), runner in self._open.items():
            worn.apply(name, runner)

    def batch_sizes(self, name: str) -> tuple[int, ...]:
        """The sizes of batches that a network of `find` is opened for; empty where any is as good."""
        return component_batch_sizes(self._component(name))

    def graph(self, name: str) -> Path:
        """The file of a network of `find`."""
        return self._directory / self._component(name).graph

    def arrays(self) -> Arrays:
        """Where pictures lie while the U-Net looks at them: with it, where its engine has arrays of its own.

        Deep features that are kept from step to step are NumPy's.

        Raises:
            RuntimeMissing, InvalidRequest: the engine or its device is not here.
        """
        if self._manifest.step_cache:
            return NUMPY
        asked = self._component(UNET)
        own: Arrays | None = device_arrays(asked.backend, asked.settings)
        return own or NUMPY

    def backend_errors(self, verb: str) -> AbstractContextManager[None]:
        """Tell what goes wrong inside as a failure of the U-Net's engine; see `runtime.reported`."""
        asked = self._component(UNET)
        return translate_errors(asked.backend, self._directory / asked.graph, verb)

    def _component(self, name: str) -> Component:
        is_unet = name in (UNET, FULL, SHALLOW)
        asked = self._manifest.components[UNET if is_unet else name]
        if cut := self._manifest.step_cache:
            asked = replace(asked, graph={FULL: cut.full, SHALLOW: cut.shallow}.get(name, asked.graph))
        if self._backend not in (None, asked.backend):
            # How a network is best run was found for the engine of the manifest, and says nothing of another one.
            asked = Component(asked.graph, asked.weights, self._backend or asked.backend)
        return replace(asked, precision=self._precision) if self._precision and is_unet else asked


def opening_shapes(component: Component, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The static shapes that a component is opened for when it is fed these: of a row, of all of them, of the largest
    batch where it serves the smaller ones, too, or none."""
    if component.streams > 1:
        return {name: (1, *shape[1:]) if shape else () for name, shape in shapes.items()}
    anew = reopen_scope(component.backend, component.settings) if component.static else "nothing"
    if anew == "sizes":
        most = component_batch_sizes(component)[-1]
        return {name: (most, *shape[1:]) if shape else () for name, shape in shapes.items()}
    return dict(shapes) if anew == "shapes" else {}


def reopens_per_batch_size(component: Component) -> bool:
    """Whether each size of a batch costs it as much as opening: it is opened, built or compiled for that."""
    compiles = component.settings.get("compile", "none") != "none"
    return component.static and (compiles or reopen_scope(component.backend, component.settings) == "shapes")


def component_batch_sizes(component: Component) -> tuple[int, ...]:
    """The sizes of batches that a component is opened for; empty where any is as good."""
    return (component.rows or DEFAULT_SIZES) if component.static and component.streams == 1 else ()


def open_component(
    directory: Path, component: Component, shapes: Mapping[str, tuple[int, ...]], options: RunnerOptions
) -> Runner:
    """A component as its manifest says, for inputs of these shapes; of `options` threads and cache are taken."""
    chosen = replace(
        options,
        precision=component.precision,
        threads=options.threads or component.threads,
        shapes=opening_shapes(component, shapes),
        static=component.static,
        batch_sizes=component_batch_sizes(component),
        streams=component.streams,
        settings=component.settings,
    )
    return open_runner(directory / component.graph, component.backend, chosen)
