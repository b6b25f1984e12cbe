"""The interface Runner of a network that an inference runtime has opened, and its implementation GraphRunner.

A GraphRunner checks the feeds (input arrays by name) before it calls the runtime. OpenVINO does not check feeds: where
one input has three rows and another has two, OpenVINO reads past the end of the second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runtime import raise_translated
from stillhouse.backends.signature import Axes
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest

_MAX_CHECKED = 64
"""Largest number of combinations of shapes and dtypes that a runner remembers as checked."""
Tensors: TypeAlias = dict[str, NDArray[Any]]


class Runner(Protocol):
    """A network that is open on a backend. Only one thread at a time may call it; a process may hold many runners."""

    @property
    def backend(self) -> str:
        """Name of the backend, as given to `open_runner`."""

    @property
    def precision(self) -> str:
        """Precision of convolutions and matrix products, as the runtime reports it: f32, bf16, f16, int8 or mixed."""

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """Number of convolutions, matrix products and attentions by precision, as the runtime reports it."""

    @property
    def weight_types(self) -> Mapping[str, int]:
        """Number of weights that are stored as integers and expanded before use, by type: int4, int8."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the inputs, in the graph's order. Lengths in `RunnerOptions.shapes` are fixed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the outputs, in the graph's order."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the network once on input arrays by name, and return the output arrays by name.

        Later calls do not write to the returned arrays.
        """


class EditableWeights(Protocol):
    """Replaceable weights of an open network; replacing them needs no compiling and no opening of the network."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes [out, in, ...] of the layers whose weights can be replaced, by torch name (`mid_block.conv`).

        These are linear layers and convolutions; on some backends also embeddings.
        """

    def original(self, layer: str) -> Any:
        """Return the weights with which a layer was opened: a float32 torch tensor [out, in, ...] on the CPU."""

    def update(self, changed: Mapping[str, Any]) -> None:
        """Set the weights of the layers in `changed`, and restore the original weights of all other layers.

        Each value of the mapping is read once, when its layer is set. The network must not be running.

        Args:
            changed: new weights by layer, in the form that `original` returns.

        Raises:
            BackendFailed: the runtime does not accept the weights.
        """


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Options for opening a network.

    Args:
        precision: onnxruntime: f32. openvino: f32, bf16 or f16 where the processor has them, or auto for the runtime's
            choice. torch: f32, bf16, on a GPU f16, or auto for the fastest of these. tensorrt: auto, which means the
            precisions that the graph holds.
        threads: upper limit of the number of threads; None: the runtime chooses. With torch the limit holds for the
            whole process.
        shapes: static shapes by input name; inputs that are left out keep the axes of the graph.
        static: whether torch compiles separate code for each set of input shapes, instead of code for any shapes.
        batch_sizes: batch sizes (lengths of the first axis) for which tensorrt builds a single engine.
        cache: directory in which openvino and tensorrt store compiled networks.
        streams: 1 runs a batch as a whole. With n above 1 (openvino), every row of the first axis runs by itself, n
            rows at a time. Small networks then run faster, since their layers are too short to be split between
            threads. A row's result then does not depend on the other rows.
        settings: settings of the backend, by name; unknown settings are refused.
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
    """A Runner of an ONNX file: checks the feeds (input arrays), calls the runtime, and translates its exceptions.

    Args:
        graph: the ONNX file.
        backend: name of the backend.
        precision: precision of convolutions and matrix products: f32, bf16, f16, int8 or mixed.
        inputs, outputs: names, dtypes and shapes of the inputs and outputs, in the graph's order.
        axes: axes by input. A named axis must have the same length in all inputs.
        run: calls the runtime with arrays in the order of `inputs`, and returns arrays in the order of `outputs`.
        layer_precisions: number of convolutions, matrix products and attentions by precision.
        weights: access to the network's weights; None where weights cannot be replaced.
        device_run: does the same as `run` with arrays on the runtime's device; None where the runtime takes NumPy
            arrays only.
        weight_types: number of weights that are stored as integers and expanded before use, by type: int4, int8. Empty
            where no weight is, or the runtime does not say.
        checked: names, shapes and dtypes of feeds that passed the checks before. The checks take about 20 microseconds,
            which is a fifth of a call of a small network.
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
    weight_types: Mapping[str, int] = field(default_factory=dict)
    checked: set[tuple[Any, ...]] = field(default_factory=set, repr=False, compare=False)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the network once on input arrays by name, and return the output arrays by name.

        Raises:
            InvalidRequest: an array is missing or unknown, or differs in dtype or shape from `inputs`, or a named axis
                has different lengths in two inputs.
            BackendFailed: the runtime failed.
        """
        key = _feeds_key(feeds)
        if key in self.checked:
            return self._call(self.run, {spec.name: feeds[spec.name] for spec in self.inputs})
        prepared = prepare_feeds(feeds, self.inputs, self.axes)
        if key:
            if len(self.checked) >= _MAX_CHECKED:
                self.checked.clear()
            self.checked.add(key)
        return self._call(self.run, prepared)

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run the network once on input arrays on its device, and return output arrays on this device, both by name.

        The next call may overwrite the returned arrays. `diffusion.arrays` describes arrays on a device.

        Raises:
            InvalidRequest: an array is missing or unknown, or differs in dtype or shape from `inputs`.
            BackendFailed: the runtime failed, or takes NumPy arrays only.
        """
        if self.device_run is None:
            raise BackendFailed(
                f"{self.graph} on {self.backend} takes NumPy arrays only", fix="call the runner with NumPy arrays"
            )
        bind_axes({name: tuple(array.shape) for name, array in feeds.items()}, self.axes)
        ordered = order_feeds(feeds, self.inputs)
        for spec in self.inputs:
            check_dtype(spec, str(ordered[spec.name].dtype).removeprefix("torch."))
        return self._call(self.device_run, ordered)

    def _call(self, run: Callable[[dict[str, Any]], Sequence[Any]], feeds: dict[str, Any]) -> dict[str, Any]:
        """Call `run` with the input arrays `feeds`, and return the output arrays by name of the output.

        An error of the runtime is raised as BackendFailed.
        """
        try:
            results = run(feeds)
        except Exception as error:
            raise_translated(error, self.backend, self.graph, "run")
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}


def _feeds_key(feeds: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the checks of feeds depend on, in the order of the feeds; empty where they cannot be left out.

    That is the case for values that are no arrays, and for arrays that are not contiguous, aligned, writable and in
    native byte order.
    """
    key = []
    for name, array in feeds.items():
        if type(array) is not np.ndarray or not array.flags.carray or not array.dtype.isnative:
            return ()
        key.append((name, array.shape, array.dtype))
    return tuple(key)


def prepare_feeds(
    feeds: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec], axes: Mapping[str, Axes]
) -> dict[str, NDArray[Any]]:
    """Check the feeds (input arrays by name), and return them in the order of `inputs`.

    The returned arrays are contiguous, aligned and in native byte order; arrays that are not are copied.

    Raises:
        InvalidRequest: an array is missing or unknown, or has another dtype than its input, or does not fit the axes.
    """
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    bind_axes({name: array.shape for name, array in arrays.items()}, axes)
    ordered = order_feeds(arrays, inputs)
    return {spec.name: _prepare_array(ordered[spec.name], spec) for spec in inputs}


def order_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the feeds (input arrays by name) in the order of `inputs`.

    Raises:
        InvalidRequest: an input has no array.
    """
    if missing := [spec.name for spec in inputs if spec.name not in feeds]:
        raise InvalidRequest(f"there is no array for input {', '.join(missing)}", allowed="an array for each input")
    return {spec.name: feeds[spec.name] for spec in inputs}


def bind_axes(shapes: Mapping[str, Sequence[int]], axes: Mapping[str, Axes]) -> dict[str, int]:
    """Check the shapes of some inputs against the axes of all inputs, and return the length of each named axis.

    An axis is a fixed length, a name, or None for any length.

    >>> bind_axes({"sample": (2, 4, 64, 64)}, {"sample": ("batch", 4, "height", "width"), "timestep": ("batch",)})
    {'batch': 2, 'height': 64, 'width': 64}

    Raises:
        InvalidRequest: an unknown input, a wrong rank or fixed length, or two lengths for one name.
    """
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        check_choice("input", name, axes)
        if len(shape) != len(axes[name]) or not all(map(_axis_fits, axes[name], shape, [lengths] * len(shape))):
            raise InvalidRequest(
                f"input {name!r} has shape {_format_shape(shape)}",
                allowed=f"{_format_shape(axes[name])}, and one length for each name of an axis",
            )
    return lengths


def fix_axes(shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return the axes of all inputs with the lengths of static shapes filled in.

    Args:
        shapes: static shape by input; other inputs may be left out. A named axis gets the length from these shapes in
            every input that has an axis of this name.
        axes: axes of all inputs.

    Raises:
        InvalidRequest: a shape does not fit the axes of its input, or two lengths are given for one named axis.

    >>> fix_axes({"sample": (2, 4)}, {"sample": ("batch", 4), "timestep": ("batch",), "text": ("tokens",)})
    {'sample': (2, 4), 'timestep': (2,), 'text': ('tokens',)}
    """
    lengths = bind_axes(shapes, axes)
    return {name: shapes.get(name) or tuple(lengths.get(str(axis), axis) for axis in old) for name, old in axes.items()}


def _axis_fits(axis: int | str | None, length: int, lengths: dict[str, int]) -> bool:
    """Return whether an axis of an input may have a length, and record the length of a named axis in `lengths`.

    Args:
        axis: the only allowed length; a name, where all axes of this name must have one length; or None for any length.
        length: length of the axis in an input array.
        lengths: recorded length of each named axis.
    """
    expected = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
    return length >= 0 and expected in (None, length)


def _prepare_array(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    check_dtype(spec, array.dtype.name)
    return np.require(array, array.dtype.newbyteorder("="), ("C", "A"))


def check_dtype(spec: TensorSpec, dtype: str) -> None:
    """Raise InvalidRequest where `dtype`, the dtype of an array, differs from the dtype of the input `spec`."""
    if dtype != spec.dtype:
        raise InvalidRequest(
            f"input {spec.name!r} got an array of {dtype}", allowed=spec.dtype, fix=f"use .astype({spec.dtype!r})"
        )


def check_settings(backend: str, settings: Mapping[str, str], allowed: Mapping[str, Sequence[str]]) -> None:
    """Raise InvalidRequest where a backend has no setting of a name, or a setting cannot have a value.

    Args:
        backend: name of the backend, for the message.
        settings: the given value of each setting.
        allowed: allowed values of each setting.
    """
    for name, value in settings.items():
        check_choice(f"setting of {backend}", name, allowed)
        check_choice(name, value, allowed[name])


def _format_shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('any' if axis is None else str(axis) for axis in shape)}]"
