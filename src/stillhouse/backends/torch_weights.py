"""Replacement of the weights of an open torch module in place, since compiled code and CUDA graphs hold addresses.

Where a fused layer has replaced several layers, the weights of each of them are rows of the fused weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from stillhouse.backends.torch_modules import FUSED_PROJECTIONS


@dataclass(frozen=True, slots=True, eq=False)
class ModuleWeights:
    """The weights of an open torch module, replaceable in place; implements `EditableWeights`.

    Args:
        network: the diffusers or transformers model.
    """

    network: nn.Module
    _originals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes [out, in, ...] of the layers whose weights can be replaced, by torch name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, module in self.network.named_modules():
            block, _, name = layer.rpartition(".")
            if name in FUSED_PROJECTIONS:
                shapes |= {
                    f"{block}.{part}": tuple(self._weight(f"{block}.{part}").shape) for part in FUSED_PROJECTIONS[name]
                }
            elif isinstance(module, nn.Linear | nn.Conv2d):
                shapes[layer] = tuple(module.weight.shape)
        return shapes

    def original(self, layer: str) -> Tensor:
        """Return the weights with which a layer was opened: a float32 tensor [out, in, ...] on the CPU."""
        original = self._originals.get(layer)
        return (self._weight(layer).detach().cpu() if original is None else original).float()

    def update(self, changed: Mapping[str, Tensor]) -> None:
        """Set the weights of the layers in `changed`, and restore the original weights of all other layers."""
        for layer in changed.keys() - self._originals.keys():
            self._originals[layer] = self._weight(layer).detach().cpu().clone()
        for layer in list(self._originals):
            if layer in changed:
                self._weight(layer).data.copy_(changed[layer])
            else:
                self._weight(layer).data.copy_(self._originals.pop(layer))

    def _weight(self, layer: str) -> Tensor:
        """Return the weights of a layer, not a copy.

        Where a fused layer has replaced the layer, return the layer's rows of the fused weights.
        """
        block, _, name = layer.rpartition(".")
        holder = self.network.get_submodule(block)
        own = getattr(holder, name)
        if own is not None:
            weight: Tensor = own.weight
            return weight
        fused = next(key for key, parts in FUSED_PROJECTIONS.items() if name in parts and hasattr(holder, key))
        parts = FUSED_PROJECTIONS[fused]
        part: Tensor = getattr(holder, fused).weight.chunk(len(parts))[parts.index(name)]
        return part
