"""LoRA adapters of an open pipeline, replaced without compiling its networks again.

Weights are changed in place. This works for torch modules, and for TensorRT engines that were built to be refitted. For
other backends, import fuses adapters into a copy of the weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stillhouse.backends.backend import Backend
from stillhouse.backends.registry import builtin_backends, find_backend
from stillhouse.backends.runner import EditableWeights, GraphRunner, Runner
from stillhouse.backends.runtime import translate_errors
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.lora import Adapter, Delta, read_adapter
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.roles import DENOISER, TEXT_ENCODERS

ADAPTED_COMPONENTS = (DENOISER, *TEXT_ENCODERS)
"""Roles of the components that adapters change."""


@dataclass(slots=True)
class ActiveAdapters:
    """The active adapters of a pipeline."""

    adapters: tuple[Adapter, ...] = ()

    def apply(self, name: str, runner: Runner) -> None:
        """Set a network's weights to its original weights with the active adapters applied.

        Args:
            name: role of the component.
            runner: runner of the network; nothing is done if its weights cannot be changed.

        Raises:
            ImportFailed: an adapter was made for another network; the weights are not changed.
            BackendFailed: the backend cannot change the weights.
        """
        if isinstance(runner, GraphRunner) and runner.weights is not None:
            changed = adapt_weights(self.adapters, name, runner.weights)
            with translate_errors(runner.backend, runner.graph, "change the weights of"):
                runner.weights.update(changed)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedWeights(Mapping[str, Tensor]):
    """Adapted weights by layer. Each is computed on access, because all of them take as much memory as the network.

    Args:
        weights: original weights of the network.
        changes: changes of each layer's weight, by layer; they are added to the original weight.
    """

    weights: EditableWeights
    changes: Mapping[str, Sequence[Delta]]

    def __getitem__(self, layer: str) -> Tensor:
        """Return a layer's weight, float32 [out, in, ...]."""
        weight: Tensor = self.weights.original(layer)
        for delta in self.changes[layer]:
            weight = weight + delta.of_shape(weight.shape)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def adapt_weights(adapters: Sequence[Adapter], component: str, weights: EditableWeights) -> AdaptedWeights:
    """Return the weights of the layers that adapters change.

    Raises:
        ImportFailed: a layer of an adapter is not in the network, or has another shape there.
    """
    changes: dict[str, list[Delta]] = {}
    for adapter in adapters:
        for layer, delta in adapter.placed(component, weights.shapes):
            changes.setdefault(layer, []).append(delta)
    return AdaptedWeights(weights, changes)


def read_adapters(texts: Sequence[str], components: Mapping[str, Component]) -> tuple[Adapter, ...]:
    """Read the LoRA files of a pipeline.

    Args:
        texts: `FILE` or `FILE:WEIGHT` each.
        components: of the pipeline, by role.

    Raises:
        ImportFailed: see `read_adapter`.
        InvalidRequest: a file changes a network whose backend cannot change weights, or not with its settings.
    """
    read = tuple(read_adapter(text, tuple(name for name in ADAPTED_COMPONENTS if name in components)) for text in texts)
    for name in {name for adapter in read for name in adapter.layers}:
        _check_backend(name, components[name])
    return read


def _check_backend(name: str, component: Component) -> None:
    """Raise InvalidRequest unless the backend of a component can change weights with the component's settings."""
    backend = find_backend(component.backend)
    needed = backend.adapter_settings or {}
    actual = {setting: component.settings.get(setting, backend.settings[setting][0]) for setting in needed}
    if backend.adapter_settings is not None and actual == dict(needed):
        return
    how = ", ".join(f"{setting} {value}" for setting, value in actual.items() if value != needed[setting])
    supported = [one for one in (*builtin_backends(), backend) if one.adapter_settings is not None]
    raise InvalidRequest(
        f"an adapter of {name}, which runs on {component.backend}{f' with {how}' if how else ''}",
        allowed="components on " + "; on ".join(dict.fromkeys(map(_describe, supported))),
        fix="fuse it with `stillhouse import MODEL --lora FILE:WEIGHT`",
    )


def _describe(backend: Backend) -> str:
    return f"{backend.name} with " + ", ".join(" ".join(pair) for pair in (backend.adapter_settings or {}).items())
