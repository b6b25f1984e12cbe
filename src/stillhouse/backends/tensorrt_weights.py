"""Weights of a refittable TensorRT engine, changed without building it again.

TensorRT names weights as the graph's initializers. A convolution's initializer has the name of its layer. A linear
layer's weights were transposed in the graph where half precision or integers were made of them, and have the name of
that operation's output.
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
"""TensorRT's names of NumPy's dtypes."""
_LEAST_RANK = 2
"""Rank from which weights belong to a layer; those of norms have one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class RefittableWeight:
    """The weights of a layer in a graph.

    Args:
        name: of the initializer.
        constant: its values.
        is_transposed: whether they are [in, out] and not [out, in].
    """

    name: str
    constant: Constant
    is_transposed: bool


def find_refittable(graph: Path) -> dict[str, RefittableWeight]:
    """Return the weights that a refit of a graph's engine can change, by layer: floats of two axes or more.

    The result is empty where other weights are integers: an engine is refittable as a whole, or not at all.

    Raises:
        PipelineError: the graph is missing, or no graph.
    """
    weights = {}
    for name, constant in initializers(load_graph(graph), graph).items():
        match = _AS_STORED.fullmatch(name) or _TRANSPOSED.fullmatch(name)
        if match and constant.dtype.name in _KINDS and len(constant.shape) >= _LEAST_RANK:
            weights[match["layer"].replace("/", ".")] = RefittableWeight(name, constant, match.re is _TRANSPOSED)
        elif len(constant.shape) >= _LEAST_RANK and constant.dtype.itemsize == 1:
            return {}
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class EngineWeights:
    """EditableWeights of a TensorRT engine.

    Args:
        torch, runtime: the modules.
        refitter: TensorRT's refitter of the engine.
        layers: from `find_refittable`.
        device: of the engine.
        on_refit: called when the engine's weights have moved.
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
        """See `EditableWeights`."""
        return {
            layer: weight.constant.shape[:: -1 if weight.is_transposed else 1] for layer, weight in self.layers.items()
        }

    def original(self, layer: str) -> Any:
        """See `EditableWeights`."""
        place = self.layers[layer]
        values = self.torch.from_numpy(np.array(place.constant.read(), np.float32))
        return values.T if place.is_transposed else values

    def update(self, changed: Mapping[str, Any]) -> None:
        """See `EditableWeights`. A layer that the engine refuses leaves all weights unchanged."""
        if not changed and not self._changed:
            return
        held: dict[str, Any] = {}  # TensorRT keeps the addresses until they are unset
        try:
            with GPU_LOCK, self.torch.cuda.device(self.device):
                for layer in sorted(self._changed | changed.keys()):
                    self._set_layer(layer, changed[layer] if layer in changed else self.original(layer), held)
                # Layers that TensorRT has fused, as queries with keys and values, are refitted together.
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
        """Pass the weights of a layer to the refitter, and hold them until the refit."""
        place = self.layers[layer]
        dtype = place.constant.dtype.name
        ordered = (values.T if place.is_transposed else values).to(getattr(self.torch, dtype)).contiguous()
        weights = self.runtime.Weights(
            getattr(self.runtime.DataType, _KINDS[dtype]), ordered.data_ptr(), ordered.numel()
        )
        if not self.refitter.set_named_weights(place.name, weights):
            raise BackendFailed(f"the engine does not accept weights for {layer}: {self.refitter.logger.last}")
        held[place.name] = ordered
