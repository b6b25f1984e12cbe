"""Inputs for a bare ONNX file: plausible ones, by name and element type, or the user's own out of an .npz file."""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from stillhouse.accelerate.calibration.graph_inputs import GraphInputs, read_graph_inputs
from stillhouse.accelerate.calibration.infer_shapes import infer_shapes
from stillhouse.backends.input_checks import bind_axes
from stillhouse.check import check_choice, check_integer
from stillhouse.errors import InvalidRequest

__all__ = ["Feeds", "infer_shapes", "ones_inputs", "plausible_inputs", "read_npz_inputs"]

Feeds: TypeAlias = dict[str, NDArray[Any]]
_Shape: TypeAlias = tuple[int, ...]

_MAX_UNKNOWN_INT = 8
"""Whole numbers that are not known to index a table stay below it."""
_LAST_TIMESTEP = 999
_WAVES = 6
_MASK_BIAS = -1e4
"""What is added to the scores of tokens that are not to be seen; float16 holds it."""
_COLOUR_CHANNELS = (1, 3, 4)
_MAX_COUNT = 10_000


def plausible_inputs(graph: Path, shapes: Mapping[str, _Shape], count: int, seed: int = 0) -> list[Feeds]:
    """Inputs such as the network may get in use, `count` different ones. What is drawn depends on the seed only.

    The first rule that fits an input decides:
        - `mask`: all of a text, later the same with shorter and shorter tails, as 1 and 0, or as 0 and -10000 where
          floats have three axes or more; rectangles where it is a float picture;
        - whole numbers in a table: the ids of its rows; `position`: 0, 1, 2, ...; `token_type`, `segment`: 0;
        - `timestep`, `t`: spread over 0 to 999, across inputs and rows; `sigma`: log-normal, as networks are trained
          in arXiv 2206.00364, table 1; `time_ids`: sizes and crops of a square picture;
        - uint8 of three axes or more: smooth pictures from 0 to 255;
        - other whole numbers: 0 to 7; bool: either;
        - floats of four axes or more: smooth fields under Gaussian noise, from noise alone to little of it;
        - other floats: Gaussian, with a spread from 0.5 to 2.

    Args:
        graph: an ONNX file.
        shapes: static, by input name, as from `guess_shapes`.
        count: how many, 1 to 10000.
        seed: from 0.

    Raises:
        InvalidRequest: shapes that do not fit the graph, or an input of a type for which there are no such values.
        PipelineError: the file is missing, or no ONNX graph.
        RuntimeMissing: onnx is not installed.

    >>> feeds = plausible_inputs(Path("bert.onnx"), {"input_ids": (1, 128)}, 4)  # doctest: +SKIP
    """
    wiring = _check_shapes(graph, shapes)
    check_integer("the number of inputs", count, 1, _MAX_COUNT)
    return [
        {name: _make_input(wiring, name, tuple(shapes[name]), probe, count, seed) for name in wiring.axes}
        for probe in range(count)
    ]


def ones_inputs(graph: Path, shapes: Mapping[str, _Shape]) -> list[Feeds]:
    """One set of inputs, all ones: what Auto-Acceleration measured with, to compare with sheets of its making.

    It hides errors: a network that is wrong on real inputs may be right on these. Raises as `plausible_inputs`.
    """
    wiring = _check_shapes(graph, shapes)
    return [{name: np.ones(shapes[name], wiring.dtypes[name]) for name in wiring.axes}]


def _check_shapes(graph: Path, shapes: Mapping[str, _Shape]) -> GraphInputs:
    wiring = read_graph_inputs(graph)
    bind_axes(shapes, wiring.axes)
    if missing := [name for name in wiring.axes if name not in shapes]:
        raise InvalidRequest(f"no shape was given for {', '.join(missing)}", allowed="a shape for each input")
    for name, dtype in wiring.dtypes.items():
        if not (_is_float(dtype) or dtype.kind in "iub"):
            given = f"input {name!r} takes {dtype.name}, for which there are no plausible values"
            raise InvalidRequest(given, allowed="whole numbers, floats and bool")
    return wiring


def _make_input(inputs: GraphInputs, name: str, shape: _Shape, probe: int, count: int, seed: int) -> NDArray[Any]:
    dtype, low = inputs.dtypes[name], name.lower()
    draw = np.random.default_rng([seed, probe, zlib.crc32(name.encode())])
    values: NDArray[Any]
    if "mask" in low:
        if _is_float(dtype) and len(shape) == 4 and not re.search("att|causal|padding", low):
            values = _make_rectangle(draw, shape)
        else:
            values = _make_mask(draw, shape, probe, dtype)
    elif dtype.kind == "b":
        values = np.asarray(draw.random(shape) < 0.5)
    elif re.search("token_type|segment", low) and dtype.kind in "iu":
        values = np.zeros(shape)
    elif "position" in low and dtype.kind in "iu" and shape:
        values = np.broadcast_to(np.arange(shape[-1]) % inputs.table_rows.get(name, shape[-1]), shape)
    elif name in inputs.table_rows and dtype.kind in "iu":
        values = draw.integers(0, inputs.table_rows[name], shape)
    elif re.search(r"time_?step|^t(ime)?$", low):
        values = _make_timesteps(shape, probe, count)
    elif "sigma" in low:
        values = np.exp(draw.normal(-1.2, 1.2, shape))
    elif "time_ids" in low and shape:
        values = np.broadcast_to(np.resize([1024, 1024, 0, 0, 1024, 1024], shape[-1]), shape)
    elif dtype == np.uint8 and len(shape) >= 3:
        values = _to_uint8(_make_smooth_picture(draw, shape))
    elif dtype.kind in "iu":
        values = draw.integers(0, _MAX_UNKNOWN_INT, shape)
    elif len(shape) >= 4:
        values = _make_noisy_picture(draw, shape, probe, count)
    else:
        values = draw.standard_normal(shape) * 2 ** (draw.uniform(-1, 1) if probe else 0)
    return np.ascontiguousarray(values.astype(dtype)).reshape(shape)


def _make_mask(rng: Generator, shape: _Shape, probe: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """All seen at first; later, each row ends somewhere in its second half."""
    *rows, length = shape or (1,)
    ends = rng.integers((length + 1) // 2, length + 1, rows[:1]) if probe else np.full(rows[:1], length)
    seen = np.arange(length) < np.reshape(ends, (*rows[:1], *[1] * len(rows)))
    seen = np.broadcast_to(seen, shape or (1,)).reshape(shape)
    return np.where(seen, 0.0, _MASK_BIAS) if _is_float(dtype) and len(shape) > 2 else seen


def _make_rectangle(rng: Generator, shape: _Shape) -> NDArray[Any]:
    mask = np.zeros(shape)
    top, left = (rng.integers(0, side // 2) for side in shape[-2:])
    mask[..., top : top + shape[-2] // 2, left : left + shape[-1] // 2] = 1
    return mask


def _make_timesteps(shape: _Shape, probe: int, count: int) -> NDArray[Any]:
    size = int(np.prod(shape))
    if count * size == 1:
        return np.full(shape, _LAST_TIMESTEP // 2)
    return np.linspace(_LAST_TIMESTEP, 0, count * size).round().reshape(size, count)[:, probe].reshape(shape)


def _make_noisy_picture(rng: Generator, shape: _Shape, probe: int, count: int) -> NDArray[Any]:
    """A picture on its way, by how much of it there is: noise alone at first, 0.95 of it at last."""
    share = 0.95 * probe / max(count - 1, 1)
    return np.asarray(share * _make_smooth_picture(rng, shape) + (1 - share**2) ** 0.5 * rng.standard_normal(shape))


def _make_smooth_picture(rng: Generator, shape: _Shape) -> NDArray[Any]:
    """A few long waves over the two axes of space, others in each row and channel; mean 0, variance 1."""
    last = shape[-1] in _COLOUR_CHANNELS
    height, width = shape[-3:-1] if last else shape[-2:]
    outer = (*shape[:-3], shape[-1]) if last else shape[:-2]
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    field = np.zeros((*outer, height, width))
    for _ in range(_WAVES):
        down, right, phase = (rng.uniform(least, most, (*outer, 1, 1)) for least, most in ((-3, 3), (-3, 3), (0, 1)))
        field += np.cos(2 * np.pi * (down * y + right * x + phase))
    field -= field.mean((-2, -1), keepdims=True)
    field /= np.maximum(field.std((-2, -1), keepdims=True), 1e-6)
    return np.moveaxis(field, -3, -1) if last else field


def _to_uint8(field: NDArray[Any]) -> NDArray[Any]:
    least, most = field.min(), field.max()
    return np.asarray(np.round(255 * (field - least) / max(most - least, 1e-6)))


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def read_npz_inputs(path: Path, graph: Path) -> list[Feeds]:
    """Read the user's own inputs: an .npz file with an array for each input of the graph, under its name.

    An array may have one axis more in front, with one entry for each set of inputs; arrays without it are in each.

    Args:
        path: as from `numpy.savez("inputs.npz", input_ids=ids, attention_mask=mask)`; nothing in it is unpickled.
        graph: the ONNX file that they are for.

    Raises:
        InvalidRequest: the file is missing or broken, or an array is missing, unknown, of another type or shape, or
            holds NaN.
        PipelineError: the graph is missing, or no ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    wiring = read_graph_inputs(graph)
    arrays = _load_npz(path)
    for name in arrays:
        check_choice(f"input (in {path.name})", name, wiring.axes)
    if missing := [name for name in wiring.axes if name not in arrays]:
        raise InvalidRequest(f"{path} has nothing for {', '.join(missing)}", allowed="an array for each input")
    sets: dict[str, int] = {}
    for name, array in arrays.items():
        _check_array(path, name, array, wiring)
        if array.ndim > len(wiring.axes[name]):
            sets[name] = len(array)
    if len(set(sets.values())) > 1 or 0 in sets.values():
        told = ", ".join(f"{name} {number}" for name, number in sets.items())
        raise InvalidRequest(f"{path} has sets of inputs: {told}", allowed="the same number in each, and not 0")
    found = [
        {name: arrays[name][number] if name in sets else arrays[name] for name in wiring.axes}
        for number in range(next(iter(sets.values()), 1))
    ]
    bind_axes({name: array.shape for name, array in found[0].items()}, wiring.axes)
    return found


def _load_npz(path: Path) -> Feeds:
    make = "write it with numpy.savez(FILE, NAME=array, ...)"
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise InvalidRequest(f"{path} holds one array without a name", allowed="an .npz file", fix=make)
            with stored:
                return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", allowed="an .npz file of inputs", fix=make) from None
    except InvalidRequest:
        raise
    except Exception as error:  # zipfile, zlib, ast and numpy each have their own
        raise InvalidRequest(
            f"{path} cannot be read: {error}", allowed="an .npz file of plain arrays", fix=make
        ) from None


def _check_array(path: Path, name: str, array: NDArray[Any], inputs: GraphInputs) -> None:
    axes, dtype = inputs.axes[name], inputs.dtypes[name]
    if array.dtype.name != dtype.name:
        fix = f"use .astype({dtype.name!r})"
        raise InvalidRequest(f"{path}: {name!r} is {array.dtype.name}", allowed=dtype.name, fix=fix)
    if array.ndim not in (len(axes), len(axes) + 1):
        allowed = f"{len(axes)}, or {len(axes) + 1} with the sets of inputs in front"
        raise InvalidRequest(f"{path}: {name!r} has {array.ndim} axes", allowed=allowed)
    if _is_float(dtype) and np.isnan(array).any():
        raise InvalidRequest(f"{path}: {name!r} holds NaN", allowed="numbers")
