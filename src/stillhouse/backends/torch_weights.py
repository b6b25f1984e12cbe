"""A module's weights, changed where they lie: compiled code and graphs of CUDA hold their addresses. Layers that were
joined into one are changed each in its part of that one.

torch is imported here, so this file is imported inside functions only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from stillhouse.backends.torch_modules import FUSED_PROJECTIONS


@dataclass(frozen=True, slots=True, eq=False)
class ModuleWeights:
    """See `runner.Weights`.

    Args:
        network: whose weights they are.
    """

    network: nn.Module
    _originals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights`."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, one in self.network.named_modules():
            block, _, name = layer.rpartition(".")
            if name in FUSED_PROJECTIONS:
                found |= {
                    f"{block}.{part}": tuple(self._weight(f"{block}.{part}").shape) for part in FUSED_PROJECTIONS[name]
                }
            elif isinstance(one, nn.Linear | nn.Conv2d):
                found[layer] = tuple(one.weight.shape)
        return found

    def original(self, layer: str) -> Tensor:
        """See `Weights`."""
        kept = self._originals.get(layer)
        return (self._weight(layer).detach().cpu() if kept is None else kept).float()

    def update(self, changed: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        for layer in changed.keys() - self._originals.keys():
            self._originals[layer] = self._weight(layer).detach().cpu().clone()
        for layer in list(self._originals):
            if layer in changed:
                self._weight(layer).data.copy_(changed[layer])
            else:
                self._weight(layer).data.copy_(self._originals.pop(layer))

    def _weight(self, layer: str) -> Tensor:
        """A layer's own, or its part of what it was joined into, where that lies."""
        block, _, name = layer.rpartition(".")
        holder = self.network.get_submodule(block)
        own = getattr(holder, name)
        if own is not None:
            weight: Tensor = own.weight
            return weight
        joined = next(one for one, parts in FUSED_PROJECTIONS.items() if name in parts and hasattr(holder, one))
        parts = FUSED_PROJECTIONS[joined]
        part: Tensor = getattr(holder, joined).weight.chunk(len(parts))[parts.index(name)]
        return part
