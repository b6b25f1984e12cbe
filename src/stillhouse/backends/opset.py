"""Conversion of an ONNX file of an old opset (version of the operators) to the opset that a recipe needs.

onnx's version converter rewrites the nodes. It knows no weights outside of the file and no element of a graph that it
cannot rewrite, so large weights are hidden from it, and its result is checked: both files run on the same inputs.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends import ort
from stillhouse.backends.graph import load_external_data, load_graph
from stillhouse.backends.onnx_edit import Model, set_repeated
from stillhouse.backends.runtime import first_error_line, require
from stillhouse.backends.signature import read_signature
from stillhouse.errors import InvalidRequest

_STANDARD = ("", "ai.onnx")
_LEAST_SQNR = 90.0
"""Least ratio of signal to noise, in decibels, of a converted graph. float32 has 24 bits, which are 144 dB. A right
conversion may change the order of sums, and so the last bits."""
_HIDDEN_BYTES = 1024
"""Size of the smallest weights that are hidden from the converter, which reads small constants, such as axes."""


@contextmanager
def with_opset(graph: Path, minimum: int, feeds: Sequence[Mapping[str, NDArray[Any]]], work: Path) -> Iterator[Path]:
    """Yield the path of a graph of at least the opset `minimum`: `graph` itself, or a converted copy.

    The copy lies in a temporary directory, which is removed when the block ends.

    Args:
        graph: an ONNX file.
        minimum: least version of the standard operators.
        feeds: inputs of the network; with the first of them, the outputs of the copy are checked.
        work: existing directory in which the temporary directory is made.

    Raises:
        InvalidRequest: the graph is of an older opset, and there are no feeds, or onnx cannot convert the graph, or the
            outputs of the copy are further from those of the graph than 90 dB.
        PipelineError, BackendFailed: the graph cannot be read or run.
    """
    version = standard_opset(load_graph(graph))
    if version >= minimum or version == 0:  # 0: the graph has no standard operators, so there is nothing to convert
        yield graph
        return
    if not feeds:
        raise _refusal(graph, version, minimum, "there are no inputs to check a conversion with")
    with TemporaryDirectory(prefix=".opset-", dir=work) as directory:
        copy = Path(directory) / graph.name
        _convert(graph, version, minimum, copy)
        sqnr = _least_sqnr(*(_run(path, feeds[0]) for path in (graph, copy)))
        if sqnr < _LEAST_SQNR:
            reason = f"the converted graph is {sqnr:.1f} dB from the original, and needs {_LEAST_SQNR:.0f}"
            raise _refusal(graph, version, minimum, reason)
        yield copy


def standard_opset(model: Model) -> int:
    """Return the version of the standard operators that a model imports; 0 where it imports none.

    Some exporters write two entries, one by each name of the domain. The highest counts, as in onnxruntime.
    """
    return max((entry.version for entry in model.opset_import if entry.domain in _STANDARD), default=0)


def set_standard_opset(model: Model, version: int) -> None:
    """Set the version of the standard operators of a model, in place. One entry is left for them."""
    others = [entry for entry in model.opset_import if entry.domain not in _STANDARD]
    set_repeated(model.opset_import, [require("onnx.helper").make_opsetid("", version), *others])


def _refusal(graph: Path, version: int, minimum: int, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{graph} is of opset {version}, and {reason}", allowed=f"{minimum} and later", fix="export the model again"
    )


def _convert(graph: Path, version: int, target: int, copy: Path) -> None:
    """Write a copy of a graph in another opset, with the files of its weights beside it.

    Args:
        graph: an ONNX file.
        version: opset of the graph.
        target: opset of the copy.
        copy: file to write, in an empty directory.

    Raises:
        InvalidRequest: onnx cannot convert the graph.
    """
    model = load_graph(graph)
    set_standard_opset(model, version)
    hidden = _hide_weights(model, graph)
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    try:
        converted: Model = require("onnx.version_converter").convert_version(model, target)
        converted.ir_version = require("onnx.helper").find_min_ir_version_for(converted.opset_import)
        require("onnx.checker").check_model(converted)
    except Exception as error:  # the converter raises errors of several kinds, and RuntimeError for a failed assertion
        reason = first_error_line(str(error))
        raise _refusal(graph, version, target, f"onnx cannot convert it to opset {target}: {reason}") from error
    converted.graph.initializer.extend(hidden.values())
    constants = {tensor.name for tensor in converted.graph.initializer}
    set_repeated(converted.graph.input, [value for value in inputs if value.name not in constants])
    set_repeated(converted.graph.output, outputs)
    copy.write_bytes(converted.SerializeToString())
    for name in read_signature(graph).external:
        (copy.parent / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(graph.parent / name, copy.parent / name)


def _hide_weights(model: Model, graph: Path) -> dict[str, Any]:
    """Replace the large initializers of a model by inputs, in place, and return these initializers by name.

    Small initializers are read from the files beside `graph`, the file of the model.
    """
    helper, hidden, seen = require("onnx.helper"), {}, []
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        if itemsize * math.prod(tensor.dims) < _HIDDEN_BYTES:
            load_external_data(tensor, graph.parent)
            seen.append(tensor)
        else:
            hidden[tensor.name] = type(tensor).FromString(tensor.SerializeToString())
            if tensor.name not in listed:
                value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                model.graph.input.append(value)
    set_repeated(model.graph.initializer, seen)
    return hidden


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links, or the files lie on two
        shutil.copyfile(source, target)


def _run(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    results = ort.make_evaluator(load_graph(graph).SerializeToString(), graph.parent)(dict(feeds))
    return {name: results[name] for name in read_signature(graph).outputs}


def _least_sqnr(expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]]) -> float:
    """Return the least ratio of signal to noise in decibels over all outputs; 0 where shapes or infinities differ."""
    return min((_sqnr(expected[name], actual[name]) for name in expected), default=math.inf)


def _sqnr(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    if expected.shape != actual.shape:
        return 0.0
    finite = np.isfinite(expected.astype(np.float64))
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        return 0.0
    signal = expected[finite].astype(np.float64)
    noise = np.square(signal - actual[finite].astype(np.float64)).sum()
    if noise == 0:
        return math.inf
    power = np.square(signal).sum()
    return 10 * math.log10(power / noise) if power > 0 and np.isfinite(noise) else 0.0
