"""Weights of a TensorRT engine that was built to be refitted: changed in the engine, which is not built anew.

TensorRT knows them by the names of the graph's initializers. A convolution's has its layer's name in it; a linear
layer's was transposed on its way into the graph where halves or integers were made of it, and is called by the place
where that was done.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.backends.graph import load_graph
from stillhouse.backends.plain import Constant, initializers
from stillhouse.errors import BackendFailed

_AS_STORED = re.compile(r"network\.(?P<layer>.+)\.weight(\.stored)?(\.half)?")
_TRANSPOSED = re.compile(r"/network/(?P<layer>.+)/Transpose_output_0(\.half)?")
_KINDS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""By numpy's name, TensorRT's."""
_LEAST_RANK = 2
"""Of a layer's weights; those of norms have one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A layer's weights in a graph.

    Args:
        name: of the initializer.
        constant: what it holds.
        is_transposed: it holds [in, out], and not [out, in].
    """

    name: str
    constant: Constant
    is_transposed: bool


def places(graph: Path) -> dict[str, Place]:
    """The weights of a graph that a refit may change, by their layers: floats of two axes or more.

    Raises:
        PipelineError: the graph is missing, or none.
    """
    found = {}
    for name, constant in initializers(load_graph(graph), graph).items():
        match = _AS_STORED.fullmatch(name) or _TRANSPOSED.fullmatch(name)
        if match and constant.dtype.name in _KINDS and len(constant.shape) >= _LEAST_RANK:
            found[match["layer"].replace("/", ".")] = Place(name, constant, match.re is _TRANSPOSED)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class EngineWeights:
    """See `runner.Weights`.

    Args:
        torch, runtime: the modules.
        refitter: TensorRT's, of the engine.
        places: see there.
        device: where the engine is.
        renewed: is called when weights lie elsewhere.
    """

    torch: Any
    runtime: Any
    refitter: Any
    places: Mapping[str, Place]
    device: str
    renewed: Callable[[], None]
    _changed: set[str] = field(default_factory=set)

    @property
    def layers(self) -> Collection[str]:
        """See `Weights`."""
        return self.places.keys()

    def plain(self, layer: str) -> Any:
        """See `Weights`."""
        place = self.places[layer]
        values = self.torch.from_numpy(np.array(place.constant.read(), np.float32))
        return values.T if place.is_transposed else values

    def put(self, changed: Mapping[str, Any]) -> None:
        """See `Weights`."""
        if not changed and not self._changed:
            return
        self._changed.update(changed)
        with self.torch.cuda.device(self.device):
            # TensorRT reads what it is given when it refits, and keeps none of it.
            held = [self._give(layer, changed) for layer in sorted(self._changed)]
            # Layers that became one, as queries with keys and values, are refitted together.
            missing = set(self.refitter.get_missing_weights())
            held += [self._give(layer, {}) for layer, place in self.places.items() if place.name in missing]
            self.torch.cuda.synchronize()
            is_refitted = self.refitter.refit_cuda_engine()
        del held
        self.renewed()
        if not is_refitted:
            raise BackendFailed("the engine could not be refitted")
        self._changed.intersection_update(changed)

    def _give(self, layer: str, changed: Mapping[str, Any]) -> Any:
        """Tell the refitter a layer's weights; they have to stay until it refits."""
        place = self.places[layer]
        values = changed[layer] if layer in changed else self.plain(layer)
        dtype = place.constant.dtype.name
        laid = (values.T if place.is_transposed else values).to(getattr(self.torch, dtype)).contiguous()
        weights = self.runtime.Weights(getattr(self.runtime.DataType, _KINDS[dtype]), laid.data_ptr(), laid.numel())
        if not self.refitter.set_named_weights(place.name, weights):
            raise BackendFailed(f"the engine does not take other weights for {layer}")
        return laid
