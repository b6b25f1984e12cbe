"""Weights of a TensorRT engine, changed (refitted) without building the engine again.

TensorRT names weights as the graph names its initializers. The initializer of a convolution is named after its layer.
Where a graph was converted to half precision or integers, the weights of linear layers are stored transposed, and have
the name of the output of the Transpose node that the exported graph had.
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
"""TensorRT's data types by NumPy dtype."""
_LEAST_RANK = 2
"""Smallest rank of the weights of a linear layer or convolution; weights of norms have one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class RefittableWeight:
    """The weights of a layer in a graph, which a refit of the graph's engine can change.

    Args:
        name: name of the initializer.
        constant: values of the initializer.
        is_transposed: whether the values are [in, out] instead of [out, in].
    """

    name: str
    constant: Constant
    is_transposed: bool


def find_refittable(graph: Path) -> dict[str, RefittableWeight]:
    """Return the weights that a refit of a graph's engine can change, by layer: floating-point, two axes or more.

    The result is empty where any layer has integer weights: an engine is refittable as a whole, or not at all.

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
    """The weights of a TensorRT engine, replaceable without building it again; implements `EditableWeights`.

    Args:
        torch, runtime: the modules of torch and TensorRT.
        refitter: TensorRT's refitter of the engine.
        layers: weights by layer, from `find_refittable`.
        device: GPU of the engine.
        on_refit: called before each refit, which may move the weights in memory.
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
        """Shapes [out, in, ...] of the layers whose weights can be replaced, by torch name."""
        return {
            layer: weight.constant.shape[:: -1 if weight.is_transposed else 1] for layer, weight in self.layers.items()
        }

    def original(self, layer: str) -> Any:
        """Return the weights of a layer in the graph: a float32 torch tensor [out, in, ...] on the CPU."""
        place = self.layers[layer]
        values = self.torch.from_numpy(np.array(place.constant.read(), np.float32))
        return values.T if place.is_transposed else values

    def update(self, changed: Mapping[str, Any]) -> None:
        """Set the weights of the layers in `changed`, and restore the graph's weights of all other layers.

        Where the engine refuses the weights of one layer, no weights change, and BackendFailed is raised.
        """
        if not changed and not self._changed:
            return
        held: dict[str, Any] = {}  # keeps the tensors alive, since TensorRT stores only their addresses
        try:
            with GPU_LOCK, self.torch.cuda.device(self.device):
                for layer in sorted(self._changed | changed.keys()):
                    self._set_layer(layer, changed[layer] if layer in changed else self.original(layer), held)
                # Layers that TensorRT has fused, such as queries with keys and values, must be refitted together. Where
                # only some of them are set, get_missing_weights returns the names of the other ones.
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
        """Pass new weights of a layer, `values`, to the refitter, and add them to `held`.

        The refitter does not copy the weights, so `held` must keep them in memory until the refit.

        Raises:
            BackendFailed: the engine does not accept the weights.
        """
        place = self.layers[layer]
        dtype = place.constant.dtype.name
        ordered = (values.T if place.is_transposed else values).to(getattr(self.torch, dtype)).contiguous()
        weights = self.runtime.Weights(
            getattr(self.runtime.DataType, _KINDS[dtype]), ordered.data_ptr(), ordered.numel()
        )
        if not self.refitter.set_named_weights(place.name, weights):
            raise BackendFailed(f"the engine does not accept weights for {layer}: {self.refitter.logger.last}")
        held[place.name] = ordered
