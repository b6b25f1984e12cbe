"""A module's weights, changed where they lie: compiled code and graphs of CUDA hold their addresses.

torch is imported here, so this file is imported inside functions only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class ModuleWeights:
    """See `runner.Weights`.

    Args:
        network: whose weights they are.
    """

    network: nn.Module
    _plain: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights`."""
        kinds = nn.Linear | nn.Conv2d
        return {name: tuple(one.weight.shape) for name, one in self.network.named_modules() if isinstance(one, kinds)}

    def plain(self, layer: str) -> Tensor:
        """See `Weights`."""
        kept = self._plain.get(layer)
        return (self._weight(layer).detach().cpu() if kept is None else kept).float()

    def put(self, changed: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        for layer in changed.keys() - self._plain.keys():
            self._plain[layer] = self._weight(layer).detach().cpu().clone()
        for layer in list(self._plain):
            if layer in changed:
                self._weight(layer).data.copy_(changed[layer])
            else:
                self._weight(layer).data.copy_(self._plain.pop(layer))

    def _weight(self, layer: str) -> Tensor:
        weight = self.network.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        return weight
