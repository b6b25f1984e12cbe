"""Checks of feeds and static shapes before a runtime sees them.

OpenVINO does not check: with three rows of one input and two of another, it reads past the end of the second.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.signature import Axes
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import InvalidRequest


def prepare_feeds(
    feeds: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec], axes: Mapping[str, Axes]
) -> dict[str, NDArray[Any]]:
    """Return the feeds in the order of `inputs`: contiguous, aligned, in native byte order.

    Raises:
        InvalidRequest: an input is missing or unknown, or an array has another dtype or does not fit the axes.
    """
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    bind_axes({name: array.shape for name, array in arrays.items()}, axes)
    ordered = order_feeds(arrays, inputs)
    return {spec.name: _prepare_array(ordered[spec.name], spec) for spec in inputs}


def order_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the feeds in the order of `inputs`. InvalidRequest where one is missing."""
    if missing := [spec.name for spec in inputs if spec.name not in feeds]:
        raise InvalidRequest(f"no array for input {', '.join(missing)}", allowed="an array for each input")
    return {spec.name: feeds[spec.name] for spec in inputs}


def bind_axes(shapes: Mapping[str, Sequence[int]], axes: Mapping[str, Axes]) -> dict[str, int]:
    """Return the length of each named axis in these shapes.

    >>> bind_axes({"sample": (2, 4, 64, 64)}, {"sample": ("batch", 4, "height", "width"), "timestep": ("batch",)})
    {'batch': 2, 'height': 64, 'width': 64}

    Raises:
        InvalidRequest: an unknown input, or a shape of another rank, with another length than a fixed axis, with a
            length of 0, or with two lengths for one name.
    """
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        check_choice("input", name, axes)
        if len(shape) != len(axes[name]) or not all(map(_axis_fits, axes[name], shape, [lengths] * len(shape))):
            raise InvalidRequest(
                f"the shape {_format_shape(shape)} for input {name!r}",
                allowed=f"{_format_shape(axes[name])}, no length of 0, and one length for each name in all inputs",
            )
    return lengths


def fix_axes(shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return the axes of all inputs with these static shapes.

    A named axis is fixed in every input that has it. Raises as `bind_axes`.

    >>> fix_axes({"sample": (2, 4)}, {"sample": ("batch", 4), "timestep": ("batch",), "text": ("tokens",)})
    {'sample': (2, 4), 'timestep': (2,), 'text': ('tokens',)}
    """
    lengths = bind_axes(shapes, axes)
    return {name: shapes.get(name) or tuple(lengths.get(str(axis), axis) for axis in old) for name, old in axes.items()}


def _axis_fits(axis: int | str | None, length: int, lengths: dict[str, int]) -> bool:
    """Return whether an axis may have this length. The first length of a named axis is added to `lengths`."""
    expected = lengths.setdefault(axis, length) if isinstance(axis, str) else axis
    return length > 0 and expected in (None, length)


def _prepare_array(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    check_dtype(spec, array.dtype.name)
    return np.require(array, array.dtype.newbyteorder("="), ("C", "A"))


def check_dtype(spec: TensorSpec, dtype: str) -> None:
    """Raise InvalidRequest where the dtype of a feed is not that of the input."""
    if dtype != spec.dtype:
        raise InvalidRequest(
            f"input {spec.name!r} got an array of {dtype}", allowed=spec.dtype, fix=f"use .astype({spec.dtype!r})"
        )


def _format_shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('any' if axis is None else str(axis) for axis in shape)}]"
