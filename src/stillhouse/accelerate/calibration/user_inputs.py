"""Inputs for a single ONNX file, read from a user's files: an .npz file of arrays, or a folder of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.accelerate.calibration.calibration_data import text_to_objects
from stillhouse.accelerate.calibration.graph_inputs import GraphInputs, read_graph_inputs
from stillhouse.accelerate.calibration.infer_shapes import infer_shapes
from stillhouse.accelerate.calibration.real_pictures import COLOUR_CHANNELS, PIXELS, scale_pixels
from stillhouse.backends.runner import bind_axes
from stillhouse.check import check_choice
from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import read_picture

Feeds: TypeAlias = dict[str, NDArray[Any]]
BGR = ":bgr"
"""Ending of a range of pixels that asks for blue, green and red in place of red, green and blue."""
MAX_PICTURES = 32
"""Largest number of sets of inputs made of a folder of pictures. Of more pictures, evenly spread ones serve."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_user_inputs(path: Path, graph: Path, shapes: Mapping[str, tuple[int, ...]], pixels: str = "") -> list[Feeds]:
    """Return the sets of inputs that a user gave for an ONNX file: an .npz file, or a folder of pictures.

    Args:
        path: an .npz file, see `read_npz_inputs`; or a folder, see `read_picture_inputs`.
        graph: the ONNX file that takes these inputs.
        shapes: shapes by input name to which pictures are resized; an input that is missing gets an inferred shape.
        pixels: range of pixels, see `read_picture_inputs`; empty: not given.

    Raises:
        InvalidRequest: the inputs do not fit the graph, or `pixels` was given for an .npz file.
        PipelineError: the graph is missing or not an ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    if path.is_dir():
        return read_picture_inputs(path, graph, infer_shapes(graph, overrides=shapes), pixels)
    if pixels:
        problem = f"--pixels {pixels} was given, but {path} is no folder of pictures"
        raise InvalidRequest(problem, allowed="--pixels together with --inputs FOLDER")
    return read_npz_inputs(path, graph)


def read_picture_inputs(folder: Path, graph: Path, shapes: Mapping[str, tuple[int, ...]], pixels: str) -> list[Feeds]:
    """Return sets of inputs of an ONNX file with one input, made of the pictures in a folder.

    Each set has as many pictures as the input has rows, in the order of the files' names; the first pictures fill up
    the last set. Pictures are resized to the height and width of the input, without regard to their own ratio.

    Args:
        folder: folder of PNG, JPEG, WebP, BMP, GIF or TIFF files; of more than MAX_PICTURES sets, evenly spread
            pictures serve.
        graph: an ONNX file with one input: uint8 or floats, four axes, NCHW or NHWC, with 1, 3 or 4 channels.
        shapes: the shape of the input, by its name.
        pixels: one of PIXELS, with the ending BGR for blue, green, red; empty: 0..255 for
            an input of uint8, or the range that the file tells, see `GraphInputs.pixels`.

    Raises:
        InvalidRequest: the graph has another input, the range is missing or unknown, or the folder has no pictures.
        PipelineError: the graph is missing or not an ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    inputs = read_graph_inputs(graph)
    name = _picture_input(folder, inputs, shapes)
    scale = _check_pixels(pixels, inputs.dtypes[name], inputs.pixels)
    rows, is_channels_last = shapes[name][0], shapes[name][-1] in COLOUR_CHANNELS
    height, width, channels = (np.array(shapes[name])[[1, 2, 3] if is_channels_last else [2, 3, 1]]).tolist()
    paths = _picture_paths(folder, rows)
    order = [2, 1, 0, 3][:channels] if pixels.endswith(BGR) and channels >= 3 else list(range(channels))
    pictures = [scale_pixels(_resize(read_picture(path), height, width, channels), scale)[..., order] for path in paths]
    sets = []
    for first in range(0, len(paths), rows):
        array = np.stack([pictures[(first + row) % len(paths)] for row in range(rows)]).astype(inputs.dtypes[name])
        sets.append({name: np.ascontiguousarray(array if is_channels_last else np.moveaxis(array, -1, 1))})
    return sets


def _picture_input(folder: Path, inputs: GraphInputs, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the name of the only input of a graph. Raise InvalidRequest if it takes no pictures or is not alone."""
    names = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    name = next(iter(inputs.axes), "")
    shape = shapes.get(name, ())
    has_type = len(inputs.axes) == 1 and (inputs.is_float(name) or inputs.dtypes[name] == np.uint8)
    if not has_type or len(shape) != 4 or not {shape[1], shape[-1]} & set(COLOUR_CHANNELS) or 0 in shape:
        raise InvalidRequest(
            f"{folder} is a folder of pictures, but the network's inputs are {names}",
            allowed="one input of uint8 or floats with 4 axes, of which the second or last has 1, 3 or 4 channels",
            fix="write an .npz file with numpy.savez(FILE, NAME=array, ...)",
        )
    return name


def _check_pixels(pixels: str, dtype: np.dtype[Any], known: str) -> str:
    """Return the range of pixels without the ending BGR, after checking that it suits the input's element type.

    Args:
        pixels: the user's range; empty: not given.
        dtype: element type of the input.
        known: range that the file tells; empty: it does not tell.
    """
    allowed = ["0..255"] if dtype == np.uint8 else list(PIXELS)
    scale = pixels.removesuffix(BGR) or ("0..255" if dtype == np.uint8 else known)
    if scale not in allowed:
        problem = f"--pixels {pixels} was given for" if pixels else "--pixels is missing, the range of"
        raise InvalidRequest(
            f"{problem} an input of {dtype.name}",
            allowed=f"{', '.join(allowed)}; with {BGR} at the end for blue, green, red",
            fix=f"take the range with which the network was trained, such as --pixels {allowed[0]}",
        )
    return scale


def _picture_paths(folder: Path, rows: int) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.name[0] != ".")
    if not paths:
        raise InvalidRequest(f"{folder} contains no pictures", allowed=f"files that end with {', '.join(_SUFFIXES)}")
    most = min(len(paths), MAX_PICTURES * rows)
    return [paths[number * len(paths) // most] for number in range(most)]


def _resize(picture: Picture, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Return an RGB picture, uint8 [height, width, channels]; one channel is grey, a fourth is opacity, 255."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR).convert(mode)
    return np.asarray(resized).reshape(height, width, channels)


def read_npz_inputs(path: Path, graph: Path) -> list[Feeds]:
    """Return the sets of inputs that a user's .npz file has for an ONNX graph; each set has an array by input name.

    The file has an array for each input, under the input's name. If an array has one axis more than the input, its
    first axis counts sets. An array with the input's number of axes is part of every set. Inputs of text are arrays of
    str.

    Args:
        path: file that `numpy.savez("inputs.npz", input_ids=ids, attention_mask=mask)` writes, for example; a file with
            pickled objects is refused.
        graph: the ONNX file that takes these inputs.

    Raises:
        InvalidRequest: the file is missing or damaged, or an array is missing, unknown, of the wrong type or shape, or
            contains NaN.
        PipelineError: the graph is missing or not an ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    inputs = read_graph_inputs(graph)
    arrays = _load_npz(path)
    for name in arrays:
        check_choice(f"input (in {path.name})", name, inputs.axes)
    if missing := [name for name in inputs.axes if name not in arrays]:
        raise InvalidRequest(f"{path} lacks arrays for {', '.join(missing)}", allowed="an array for each input")
    set_counts: dict[str, int] = {}
    for name, array in arrays.items():
        _check_array(path, name, array, inputs)
        if array.ndim > len(inputs.axes[name]):
            set_counts[name] = len(array)
    if len(set(set_counts.values())) > 1 or 0 in set_counts.values():
        counts = ", ".join(f"{name} {number}" for name, number in set_counts.items())
        raise InvalidRequest(
            f"{path} has different numbers of input sets in its arrays: {counts}",
            allowed="the same number of sets in each array, at least 1",
        )
    input_sets = [
        {name: arrays[name][number] if name in set_counts else arrays[name] for name in inputs.axes}
        for number in range(next(iter(set_counts.values()), 1))
    ]
    bind_axes({name: array.shape for name, array in input_sets[0].items()}, inputs.axes)
    return input_sets


def _load_npz(path: Path) -> Feeds:
    write_with_savez = "write it with numpy.savez(FILE, NAME=array, ...)"
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise InvalidRequest(
                    f"{path} contains one array without a name",
                    allowed="an .npz file of named arrays",
                    fix=write_with_savez,
                )
            with stored:
                return {name: text_to_objects(stored[name]) for name in stored.files}
    except FileNotFoundError:
        raise InvalidRequest(
            f"{path} does not exist", allowed="an .npz file of named arrays", fix=write_with_savez
        ) from None
    except InvalidRequest:
        raise
    except Exception as error:  # all types, because zipfile, zlib, ast and numpy each raise their own on a damaged file
        raise InvalidRequest(
            f"{path} cannot be read: {error}",
            allowed="an .npz file of arrays without pickled objects",
            fix=write_with_savez,
        ) from None


def _check_array(path: Path, name: str, array: NDArray[Any], inputs: GraphInputs) -> None:
    axes, dtype = inputs.axes[name], inputs.dtypes[name]
    if array.dtype.name != dtype.name:
        fix = f"use .astype({'str' if dtype == np.object_ else dtype.name!r})"
        raise InvalidRequest(f"{path}: array {name!r} has the dtype {array.dtype.name}", allowed=dtype.name, fix=fix)
    if array.ndim not in (len(axes), len(axes) + 1):
        allowed = f"{len(axes)} axes, or {len(axes) + 1} of which the first counts sets of inputs"
        raise InvalidRequest(f"{path}: array {name!r} has {array.ndim} axes", allowed=allowed)
    if inputs.is_float(name) and np.isnan(array).any():
        raise InvalidRequest(f"{path}: array {name!r} contains NaN", allowed="finite or infinite numbers")
