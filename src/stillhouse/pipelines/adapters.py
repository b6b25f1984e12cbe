"""LoRA adapters of an open pipeline, replaced without compiling its networks again.

Weights are changed in place. This works for torch modules, and for TensorRT engines that were built to be refitted. For
other backends, `stillhouse import --lora` can fuse adapters into the weights that it writes.
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
"""Roles of the networks whose weights adapters can change: the denoiser and the text encoders."""


@dataclass(slots=True)
class ActiveAdapters:
    """The LoRA adapters that are currently applied to a pipeline's networks."""

    adapters: tuple[Adapter, ...] = ()

    def apply(self, name: str, runner: Runner) -> None:
        """Set the weights of an open network to its original weights plus the changes of the active adapters.

        Args:
            name: role of the network, for example denoiser.
            runner: the open network; nothing is done if its weights cannot be changed.

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
    """The weights that adapters change, with the changes added, by name of the layer.

    Each weight is computed on access, because together the weights take as much memory as the network.

    Args:
        weights: original weights of the network.
        changes: the changes that are added to each layer's original weight, by name of the layer.
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
    """Return the changed weights of a network, by name of the layer; layers without a change are left out.

    Args:
        adapters: LoRA adapters, all of which are applied.
        component: role of the network.
        weights: original weights of the network.

    Raises:
        ImportFailed: a layer of an adapter is not in the network, or has another shape there.
    """
    changes: dict[str, list[Delta]] = {}
    for adapter in adapters:
        for layer, delta in adapter.placed(component, weights.shapes):
            changes.setdefault(layer, []).append(delta)
    return AdaptedWeights(weights, changes)


def read_adapters(texts: Sequence[str], components: Mapping[str, Component]) -> tuple[Adapter, ...]:
    """Read LoRA files and check that a pipeline's networks can take them.

    Args:
        texts: the files, each as `FILE` or `FILE:WEIGHT`.
        components: how the pipeline's networks are run, by role.

    Raises:
        ImportFailed: a file does not exist, is not LoRA, or changes a network that the pipeline does not have.
        InvalidRequest: a file changes a network whose backend cannot change weights, or not with the network's
            settings.
    """
    read = tuple(read_adapter(text, tuple(name for name in ADAPTED_COMPONENTS if name in components)) for text in texts)
    for name in {name for adapter in read for name in adapter.layers}:
        _check_backend(name, components[name])
    return read


def _check_backend(name: str, component: Component) -> None:
    """Raise InvalidRequest unless a network's backend can change weights when it runs with the network's settings.

    Args:
        name: role of the network.
        component: backend and settings of the network.
    """
    backend = find_backend(component.backend)
    needed = backend.adapter_settings or {}
    actual = {setting: component.settings.get(setting, backend.settings[setting][0]) for setting in needed}
    if backend.adapter_settings is not None and actual == dict(needed):
        return
    how = ", ".join(f"{setting} {value}" for setting, value in actual.items() if value != needed[setting])
    supported = [one for one in (*builtin_backends(), backend) if one.adapter_settings is not None]
    raise InvalidRequest(
        f"an adapter cannot change {name}, which runs on {component.backend}{f' with {how}' if how else ''}",
        allowed="networks on " + "; on ".join(dict.fromkeys(map(_describe, supported))),
        fix="fuse the adapter with `stillhouse import MODEL --lora FILE:WEIGHT`",
    )


def _describe(backend: Backend) -> str:
    return f"{backend.name} with " + ", ".join(" ".join(pair) for pair in (backend.adapter_settings or {}).items())
