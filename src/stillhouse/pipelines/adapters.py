"""Adapters on an open pipeline: LoRA put on, changed and taken off, while all that was compiled for it stays.

Weights are changed where they lie: torch's in its modules, TensorRT's in an engine that was built to be refitted. At
import an adapter is fused into a copy, which is all that other engines can do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stillhouse.backends.runner import EditableWeights, GraphRunner, Runner
from stillhouse.backends.runtime import translate_errors
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.lora import Adapter, Delta, read_adapter
from stillhouse.pipelines.manifest import Component

ADAPTED_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""Components that adapters change."""
_DEFAULT_SETTINGS = {"quantize": "none", "offload": "none", "weights": "fixed"}
_REFIT = {"weights": "refit"}
ADAPTER_BACKENDS: Mapping[str, Mapping[str, str]] = {
    "torch": {name: _DEFAULT_SETTINGS[name] for name in ("quantize", "offload")},
    "tensorrt": _REFIT,
    "tensorrt-rtx": _REFIT,
}
"""Engines whose weights may be changed, and the settings with which they lie as they were trained, each by itself."""


@dataclass(slots=True)
class ActiveAdapters:
    """What a pipeline wears."""

    adapters: tuple[Adapter, ...] = ()

    def apply(self, name: str, runner: Runner) -> None:
        """Give a network the weights of what is worn: of its own, taken anew, so that nothing adds up.

        Raises:
            ImportFailed: an adapter that was made for another network; its weights are then what they were.
            BackendFailed: the engine cannot change them.
        """
        if isinstance(runner, GraphRunner) and runner.weights is not None:
            changed = adapt_weights(self.adapters, name, runner.weights)
            with translate_errors(runner.backend, runner.graph, "change the weights of"):
                runner.weights.update(changed)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedWeights(Mapping[str, Tensor]):
    """What adapters make of a network's weights, by layer, each made when it is asked for: together they are large.

    Args:
        weights: of the network.
        changes: of each layer, what is added to it.
    """

    weights: EditableWeights
    changes: Mapping[str, Sequence[Delta]]

    def __getitem__(self, layer: str) -> Tensor:
        """Float32 [out, in, ...]."""
        weight: Tensor = self.weights.original(layer)
        for delta in self.changes[layer]:
            weight = weight + delta.of_shape(weight.shape)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def adapt_weights(adapters: Sequence[Adapter], component: str, weights: EditableWeights) -> AdaptedWeights:
    """What these adapters make of a network's weights; layers that none of them changes are left out.

    Raises:
        ImportFailed: a layer of an adapter is not in the network, or has another shape there.
    """
    changes: dict[str, list[Delta]] = {}
    for adapter in adapters:
        for layer, delta in adapter.placed(component, weights.shapes):
            changes.setdefault(layer, []).append(delta)
    return AdaptedWeights(weights, changes)


def read_adapters(texts: Sequence[str], components: Mapping[str, Component]) -> tuple[Adapter, ...]:
    """Read LoRA files for a pipeline of these components, `FILE` or `FILE:WEIGHT` each.

    Raises:
        ImportFailed: see `read_adapter`.
        InvalidRequest: a network that they change is run by an engine, or with settings, that keeps its weights.
    """
    read = tuple(read_adapter(text, tuple(name for name in ADAPTED_COMPONENTS if name in components)) for text in texts)
    for name in {name for adapter in read for name in adapter.layers}:
        component = components[name]
        needed = ADAPTER_BACKENDS.get(component.backend)
        told = {setting: component.settings.get(setting, _DEFAULT_SETTINGS[setting]) for setting in needed or ()}
        if needed is None or told != dict(needed):
            how = ", ".join(f"{setting} {value}" for setting, value in told.items() if value != (needed or {})[setting])
            raise InvalidRequest(
                f"an adapter of {name}, which runs on {component.backend}{f' with {how}' if how else ''}",
                allowed="components on " + "; on ".join(_describe(*one) for one in ADAPTER_BACKENDS.items()),
                fix="fuse it with `stillhouse import MODEL --lora FILE:WEIGHT`",
            )
    return read


def _describe(backend: str, settings: Mapping[str, str]) -> str:
    return f"{backend} with " + ", ".join(" ".join(pair) for pair in settings.items())
