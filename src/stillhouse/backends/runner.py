"""What every backend gives back: a network that takes named arrays and returns named arrays."""

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
    """One network, opened on one backend. To be called from one thread at a time; many may live in a process."""

    @property
    def backend(self) -> str:
        """The name that `open_runner` was given."""

    @property
    def precision(self) -> str:
        """What the heavy layers compute in, as read back from the runtime: f32, bf16, f16, int8 or mixed."""

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """How many heavy operations (convolutions, matrix products, attention) run in each precision, read back."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What must be fed, with the static shapes that were asked for."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What comes back."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once. The arrays that come back belong to the caller: a later run does not touch them."""


class EditableWeights(Protocol):
    """Weights of an open network that may be changed, while all that was compiled for it stays."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """[out, in, ...] of linear layers and convolutions, maybe of embeddings, named as in torch: mid_block.conv."""

    def original(self, layer: str) -> Any:
        """What a layer was opened with: a tensor of torch's, float32 [out, in, ...], in the processor's memory."""

    def update(self, changed: Mapping[str, Any]) -> None:
        """Give these layers these weights, as `plain` has them, and all others what they were opened with.

        Each is asked for once, when it is needed. Nothing may be running. Raises whatever the runtime does.
        """


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a network is opened.

    Args:
        precision: asked for. onnxruntime: f32. openvino: f32, bf16, f16 as the processor has them, or auto for
            whatever the runtime prefers. torch: f32, bf16, or auto for bf16 where the processor has it.
        threads: at most so many; None leaves the number to the runtime. torch: of the whole process.
        shapes: static shapes by input name; inputs that are not named keep the graph's own axes.
        static: whether each shape that is fed may be compiled for itself, where one opening serves several (torch).
        rows: lengths of the first axis that will be fed, where one opening serves several (tensorrt).
        cache: directory for compiled networks, where the runtime can keep them (openvino).
        streams: 1 runs a batch as a whole. More runs every row of the first axis apart, so many rows at a time
            (openvino only). Small networks finish sooner so, since their layers are too short
            to be shared between threads; and no row can tell who its neighbours are.
        settings: further ones that a backend knows by name; an unknown one is refused.
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
    """A Runner over an ONNX file: checks the feeds, calls the runtime, and turns its failures into ours.

    Args:
        weights: where they may be changed in place.
        run_there: runs it on the runtime's own arrays, where it has any.
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
        """Run once.

        Raises:
            InvalidRequest: a feed is missing, unknown, or of another dtype or shape than `inputs` says, or two
                inputs differ in an axis that has the same name in the graph.
            BackendFailed: the runtime gave up.
        """
        arrays = prepare_feeds(feeds, self.inputs, self.axes)
        with translate_errors(self.backend, self.graph, "run"):
            results = self.run(arrays)
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run once on arrays that lie where the network does, see `diffusion.arrays`, and leave there what it answers.

        The next run may overwrite that.

        Raises:
            InvalidRequest: as a call.
            BackendFailed: as a call, and where the runtime has no arrays of its own.
        """
        if self.device_run is None:
            raise BackendFailed(f"{self.graph} on {self.backend} takes NumPy's arrays only")
        bind_axes({name: tuple(array.shape) for name, array in feeds.items()}, self.axes)
        ordered = order_feeds(feeds, self.inputs)
        for spec in self.inputs:
            check_dtype(spec, str(ordered[spec.name].dtype).removeprefix("torch."))
        with translate_errors(self.backend, self.graph, "run"):
            results = self.device_run(ordered)
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}
