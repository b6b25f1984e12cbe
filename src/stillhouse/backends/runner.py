"""Runner: an open network, called with named arrays. GraphRunner implements it for all backends of this package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from stillhouse.backends.input_checks import bind_axes, check_dtype, order_feeds, prepare_feeds
from stillhouse.backends.runtime import translate_errors
from stillhouse.backends.signature import Axes
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed

Tensors: TypeAlias = dict[str, NDArray[Any]]


class Runner(Protocol):
    """A network that is open on a backend. Call it from one thread at a time; a process may hold many."""

    @property
    def backend(self) -> str:
        """Name that `open_runner` was called with."""

    @property
    def precision(self) -> str:
        """Precision that the heavy layers compute in, read back from the runtime: f32, bf16, f16, int8 or mixed."""

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """Number of heavy operations (convolutions, matrix products, attention) in each precision, read back."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs, with the static shapes of the options."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the network once.

        The returned arrays belong to the caller: later calls do not write to them.
        """


class EditableWeights(Protocol):
    """Weights of an open network that can be replaced without compiling or opening it again."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes [out, in, ...] of the layers whose weights can be replaced, by torch name (`mid_block.conv`).

        These are linear layers and convolutions; on some backends also embeddings.
        """

    def original(self, layer: str) -> Any:
        """Return the weights that a layer was opened with: a float32 torch tensor [out, in, ...] on the CPU."""

    def update(self, changed: Mapping[str, Any]) -> None:
        """Set the weights of these layers, and restore the original weights of all others.

        Each value is read once, when it is needed. The network must not be running.

        Args:
            changed: new weights by layer, as `original` returns them.

        Raises:
            BackendFailed: the runtime does not accept them.
        """


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Options for opening a network.

    Args:
        precision: onnxruntime: f32. openvino: f32, bf16, f16 as the processor has them, or auto for the runtime's
            choice. torch: f32, bf16, on a GPU f16, or auto for the fastest of them. tensorrt: auto, the graph's own.
        threads: upper limit; None leaves the number to the runtime. torch: of the whole process.
        shapes: static shapes by input name; other inputs keep the axes of the graph.
        static: whether each shape may be compiled for itself, where one opening serves several (torch).
        batch_sizes: lengths of the first axis that one opening serves (tensorrt).
        cache: directory for compiled networks, where the runtime can store them (openvino, tensorrt).
        streams: 1 runs a batch as a whole. More runs every row of the first axis by itself, that many at a time
            (openvino). Small networks are faster so, since their layers are too short to be split between threads, and
            a row's result does not depend on the other rows.
        settings: settings of the backend, by name; an unknown one is refused.
    """

    precision: str = "f32"
    threads: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    static: bool = False
    batch_sizes: tuple[int, ...] = ()
    cache: Path | None = None
    streams: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphRunner:
    """A Runner over an ONNX file: checks the feeds, calls the runtime, and translates its exceptions.

    Args:
        graph: the file.
        backend: name of the backend.
        precision, inputs, outputs, layer_precisions: as of Runner.
        axes: of the inputs, with the names that must have one length in all inputs.
        run: calls the runtime with arrays in the order of `inputs` and returns those of `outputs`.
        weights: where they can be replaced; None where they cannot.
        device_run: calls the runtime with arrays on its device; None where it takes NumPy arrays only.
    """

    graph: Path
    backend: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, Axes]
    run: Callable[[Tensors], Sequence[NDArray[Any]]]
    layer_precisions: Mapping[str, int] = field(default_factory=dict)
    weights: EditableWeights | None = None
    device_run: Callable[[Mapping[str, Any]], Sequence[Any]] | None = None

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the network once.

        Raises:
            InvalidRequest: a feed is missing, unknown, or of another dtype or shape than `inputs`, or an axis of one
                name has different lengths in two inputs.
            BackendFailed: the runtime failed.
        """
        arrays = prepare_feeds(feeds, self.inputs, self.axes)
        with translate_errors(self.backend, self.graph, "run"):
            results = self.run(arrays)
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run the network once on arrays of its device, see `diffusion.arrays`, and return arrays there.

        The next call may overwrite them.

        Raises:
            InvalidRequest: as of a call.
            BackendFailed: as of a call, and where the runtime has no device arrays.
        """
        if self.device_run is None:
            raise BackendFailed(f"{self.graph} on {self.backend} takes NumPy arrays only")
        bind_axes({name: tuple(array.shape) for name, array in feeds.items()}, self.axes)
        ordered = order_feeds(feeds, self.inputs)
        for spec in self.inputs:
            check_dtype(spec, str(ordered[spec.name].dtype).removeprefix("torch."))
        with translate_errors(self.backend, self.graph, "run"):
            results = self.device_run(ordered)
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}
