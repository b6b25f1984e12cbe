"""Weights of a TensorRT engine that was built to be refitted: changed in the engine, which is not built anew.

TensorRT knows them by the names of the graph's initializers. A convolution's has its layer's name in it; a linear
layer's was transposed on its way into the graph where halves or integers were made of it, and is called by the place
where that was done.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.backends.graph import load_graph
from stillhouse.backends.onnx_edit import Constant, initializers
from stillhouse.backends.torch_device import GPU_LOCK
from stillhouse.errors import BackendFailed

_AS_STORED = re.compile(r"network\.(?P<layer>.+)\.weight(\.stored)?(\.half)?")
_TRANSPOSED = re.compile(r"/network/(?P<layer>.+)/Transpose_output_0(\.half)?")
_KINDS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""By numpy's name, TensorRT's."""
_LEAST_RANK = 2
"""Of a layer's weights; those of norms have one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class RefittableWeight:
    """A layer's weights in a graph.

    Args:
        name: of the initializer.
        constant: what it holds.
        is_transposed: it holds [in, out], and not [out, in].
    """

    name: str
    constant: Constant
    is_transposed: bool


def find_refittable(graph: Path) -> dict[str, RefittableWeight]:
    """The weights of a graph that a refit may change, by their layers: floats of two axes or more.

    There are none where others are integers: a graph can be refitted as a whole, or not at all.

    Raises:
        PipelineError: the graph is missing, or none.
    """
    found = {}
    for name, constant in initializers(load_graph(graph), graph).items():
        match = _AS_STORED.fullmatch(name) or _TRANSPOSED.fullmatch(name)
        if match and constant.dtype.name in _KINDS and len(constant.shape) >= _LEAST_RANK:
            found[match["layer"].replace("/", ".")] = RefittableWeight(name, constant, match.re is _TRANSPOSED)
        elif len(constant.shape) >= _LEAST_RANK and constant.dtype.itemsize == 1:
            return {}
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
    layers: Mapping[str, RefittableWeight]
    device: str
    on_refit: Callable[[], None]
    _changed: set[str] = field(default_factory=set)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights`."""
        return {layer: one.constant.shape[:: -1 if one.is_transposed else 1] for layer, one in self.layers.items()}

    def original(self, layer: str) -> Any:
        """See `Weights`."""
        place = self.layers[layer]
        values = self.torch.from_numpy(np.array(place.constant.read(), np.float32))
        return values.T if place.is_transposed else values

    def update(self, changed: Mapping[str, Any]) -> None:
        """See `Weights`. A layer that the engine does not take leaves all of them as they were."""
        if not changed and not self._changed:
            return
        held: dict[str, Any] = {}  # TensorRT keeps addresses, until it is told to forget them
        try:
            with GPU_LOCK, self.torch.cuda.device(self.device):
                for layer in sorted(self._changed | changed.keys()):
                    self._set_layer(layer, changed[layer] if layer in changed else self.original(layer), held)
                # Layers that became one, as queries with keys and values, are refitted together.
                missing = set(self.refitter.get_missing_weights())
                for layer in [layer for layer, place in self.layers.items() if place.name in missing]:
                    self._set_layer(layer, self.original(layer), held)
                self._changed.update(changed)
                self.torch.cuda.synchronize()
                self.on_refit()
                if not self.refitter.refit_cuda_engine():
                    raise BackendFailed(f"the engine could not be refitted: {self.refitter.logger.last}")
                self._changed.intersection_update(changed)
        finally:
            for name in held:
                self.refitter.unset_named_weights(name)

    def _set_layer(self, layer: str, values: Any, held: dict[str, Any]) -> None:
        """Tell the refitter where a layer's weights lie, and hold them there."""
        place = self.layers[layer]
        dtype = place.constant.dtype.name
        laid = (values.T if place.is_transposed else values).to(getattr(self.torch, dtype)).contiguous()
        weights = self.runtime.Weights(getattr(self.runtime.DataType, _KINDS[dtype]), laid.data_ptr(), laid.numel())
        if not self.refitter.set_named_weights(place.name, weights):
            told = self.refitter.logger.last
            raise BackendFailed(f"the engine does not take other weights for {layer}: {told}")
        held[place.name] = laid
