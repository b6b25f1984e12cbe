"""Adapters on an open pipeline: LoRA put on, changed and taken off, while all that was compiled for it stays.

Weights are changed where they lie. What torch has compiled, and graphs of CUDA, hold their addresses and go on with
them; at import an adapter is fused into a copy, which is all that other engines can do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from stillhouse.backends.runner import GraphRunner, Runner
from stillhouse.errors import InvalidRequest
from stillhouse.models.lora import Adapter, read_adapter, targets
from stillhouse.models.manifest import Component

CHANGED = ("unet", "text_encoder", "text_encoder_2")
"""Components that adapters change."""
_APART: Mapping[str, str] = {"quantize": "none", "offload": "none", "qkv": "apart"}
"""Settings of torch with which weights lie as they were trained, each by itself."""


@dataclass(slots=True)
class Worn:
    """What a pipeline wears, and what its weights were before."""

    adapters: tuple[Adapter, ...] = ()
    _plain: WeakKeyDictionary[Any, Mapping[str, Tensor]] = field(default_factory=WeakKeyDictionary)

    def put_on(self, name: str, runner: Runner) -> None:
        """Give a network the weights of what is worn: of its own, taken anew, so that nothing adds up.

        Raises:
            ImportFailed: an adapter that was made for another network; its weights are then its own.
        """
        if not isinstance(runner, GraphRunner) or runner.network is None:
            return
        weights = targets(runner.network)
        for layer, plain in self._plain.pop(runner.network, {}).items():
            weights[layer].data.copy_(plain)
        changed = {layer for adapter in self.adapters for layer in adapter.layers.get(name, {}) if layer in weights}
        kept = {layer: weights[layer].detach().cpu().clone() for layer in changed}
        try:
            for adapter in self.adapters:
                adapter.fuse(name, runner.network)
        except Exception:
            for layer, plain in kept.items():
                weights[layer].data.copy_(plain)
            raise
        if kept:
            self._plain[runner.network] = kept


def read_adapters(texts: Sequence[str], components: Mapping[str, Component]) -> tuple[Adapter, ...]:
    """Read LoRA files for a pipeline of these components, `FILE` or `FILE:WEIGHT` each.

    Raises:
        ImportFailed: see `read_adapter`.
        InvalidRequest: a network that they change is not run by torch with its weights as they are.
    """
    read = tuple(read_adapter(text, tuple(name for name in CHANGED if name in components)) for text in texts)
    for name in {name for adapter in read for name in adapter.layers}:
        component = components[name]
        told = {setting: component.settings.get(setting, plain) for setting, plain in _APART.items()}
        if component.backend != "torch" or told != dict(_APART):
            how = ", ".join(f"{setting} {value}" for setting, value in told.items() if value != _APART[setting])
            raise InvalidRequest(
                f"an adapter of {name}, which runs on {component.backend}{f' with {how}' if how else ''}",
                allowed="components on torch, with " + ", ".join(" ".join(pair) for pair in _APART.items()),
                fix="fuse it with `stillhouse import MODEL --lora FILE:WEIGHT`",
            )
    return read
