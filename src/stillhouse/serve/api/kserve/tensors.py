"""Named tensors of KServe's protocol: parse input tensors into a request, and pack an image into output tensors.

Both HTTP and gRPC use this module; they differ only in how tensors are encoded on the wire.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.output import PreviewImage

Datatype: TypeAlias = Literal["BYTES", "FP32", "INT32", "INT64", "UINT8"]

MAX_ECHO = 64
"""Largest number of characters of a client's text that an error message repeats."""
_LARGE = 10**18
_CODES = {"INT64": "<q", "INT32": "<i", "FP32": "<f"}
_LENGTH = struct.Struct("<I")


class ModelTensor(NamedTuple):
    """Specification of an input or output tensor; -1 in its shape stands for a size that depends on the request."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}, {self.datatype} {list(self.shape)}"


class InputTensor(NamedTuple):
    """A tensor as sent by a client, not yet validated.

    Args:
        name: name of the input.
        datatype: KServe datatype that the client names.
        shape: shape that the client names.
        content: list of elements, or raw little-endian bytes in row-major order. In raw bytes, each text is preceded by
            its length in 4 bytes.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes | Sequence[object]


class OutputTensor(NamedTuple):
    """A tensor sent to a client; `content` holds its elements as raw little-endian bytes in row-major order.

    Each element of datatype BYTES is preceded by its length in 4 bytes.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    content: bytes


PROMPT = ModelTensor("PROMPT", "BYTES", (1,))
NEGATIVE_PROMPT = ModelTensor("NEGATIVE_PROMPT", "BYTES", (1,))
SEED = ModelTensor("SEED", "INT64", (1,))
STEPS = ModelTensor("STEPS", "INT32", (1,))
GUIDANCE = ModelTensor("GUIDANCE", "FP32", (1,))
IMAGE = ModelTensor("IMAGE", "UINT8", (-1, -1, 3))
PREVIEW = ModelTensor("PREVIEW", "BYTES", (1,))
STEP = ModelTensor("STEP", "INT32", (1,))
INPUTS: Mapping[str, ModelTensor] = {spec.name: spec for spec in (PROMPT, NEGATIVE_PROMPT, SEED, STEPS, GUIDANCE)}
OUTPUTS: Mapping[str, ModelTensor] = {spec.name: spec for spec in (IMAGE, SEED)}


def parse_inputs(inputs: Iterable[InputTensor], seed: int) -> ImageRequest:
    """Return the image request that input tensors describe.

    Args:
        inputs: tensors whose names are keys of `INPUTS`; only PROMPT is required.
        seed: seed to use if the input SEED is missing.

    Raises:
        InvalidRequest: an input is unknown, repeated, or has a wrong datatype, shape or content.

    >>> prompt, steps = InputTensor("PROMPT", "BYTES", [1], ["a red circle"]), InputTensor("STEPS", "INT32", [1], [3])
    >>> parse_inputs([prompt, steps], seed=7).steps
    3
    """
    values: dict[str, Any] = {}
    for tensor in inputs:
        check_choice("input", tensor.name[:MAX_ECHO], INPUTS)
        if tensor.name in values:
            raise InvalidRequest(f"there are two inputs named {tensor.name}", allowed="each input once")
        values[tensor.name] = _parse_element(tensor, INPUTS[tensor.name])
    if "PROMPT" not in values:
        raise InvalidRequest("the request has no prompt", allowed=f"a request with the input {PROMPT}")
    return ImageRequest(
        values["PROMPT"],
        negative_prompt=values.get("NEGATIVE_PROMPT", ""),
        seed=values.get("SEED", seed),
        steps=values.get("STEPS"),
        guidance=values.get("GUIDANCE"),
    )


def image_tensors(request: ImageRequest, content: bytes) -> tuple[OutputTensor, ...]:
    """Return the output tensors IMAGE and SEED of a finished request.

    Args:
        request: image request with all defaults filled in.
        content: raw uint8 pixels [height, width, 3].
    """
    assert request.height is not None and request.width is not None
    return (
        OutputTensor(IMAGE.name, IMAGE.datatype, (request.height, request.width, 3), content),
        OutputTensor(SEED.name, SEED.datatype, SEED.shape, struct.pack("<q", request.seed)),
    )


def preview_tensors(preview: PreviewImage) -> tuple[OutputTensor, ...]:
    """Return the output tensors of a preview: PREVIEW, a WebP file, and STEP, the number of completed evaluations."""
    return (
        OutputTensor(PREVIEW.name, PREVIEW.datatype, PREVIEW.shape, pack_bytes(preview.content)),
        OutputTensor(STEP.name, STEP.datatype, STEP.shape, struct.pack("<i", preview.index)),
    )


def select_outputs(outputs: Sequence[OutputTensor], names: Sequence[str]) -> Sequence[OutputTensor]:
    """Return the outputs with these names, in the order of `names`; all outputs if `names` is empty."""
    by_name = {output.name: output for output in outputs}
    return [by_name[name] for name in names] if names else outputs


def pack_bytes(content: bytes) -> bytes:
    r"""Return an element of a BYTES tensor: the length of the content in 4 bytes, little-endian, then the content.

    >>> pack_bytes(b"abc")
    b'\x03\x00\x00\x00abc'
    """
    return _LENGTH.pack(len(content)) + content


def _parse_element(tensor: InputTensor, spec: ModelTensor) -> str | int | float:
    """Return the single element of an input tensor.

    Raises:
        InvalidRequest: the datatype, the shape or the number of elements differs from `spec`.
    """
    if tensor.datatype != spec.datatype or tuple(tensor.shape) != spec.shape:
        received = f"{tensor.datatype[:MAX_ECHO]} {list(tensor.shape[:8])}"
        raise InvalidRequest(f"input {spec.name} is {received}", allowed=f"{spec.datatype} {list(spec.shape)}")
    elements = _unpack(tensor.content, spec) if isinstance(tensor.content, bytes) else tensor.content
    if len(elements) != 1:
        raise InvalidRequest(f"input {spec.name} has {len(elements)} elements", allowed="1 element")
    return _text(spec, elements[0]) if spec.datatype == "BYTES" else _number(spec, elements[0])


def _unpack(content: bytes, spec: ModelTensor) -> Sequence[object]:
    if spec.datatype == "BYTES":
        prefix = _LENGTH.size
        if len(content) < prefix or _LENGTH.unpack_from(content)[0] != len(content) - prefix:
            allowed = "the length of the text in 4 bytes, little-endian, and then the text"
            raise InvalidRequest(
                f"input {spec.name} has {len(content)} bytes that are not a length-prefixed text", allowed=allowed
            )
        return [content[prefix:]]
    code = _CODES[spec.datatype]
    if len(content) != struct.calcsize(code):
        allowed = f"{struct.calcsize(code)} bytes for {spec.datatype} {list(spec.shape)}"
        raise InvalidRequest(f"input {spec.name} has {len(content)} bytes", allowed=allowed)
    return struct.unpack(code, content)


def _text(spec: ModelTensor, element: object) -> str:
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"input {spec.name} is not UTF-8", allowed="a text in UTF-8") from None
    if isinstance(element, str):
        return element
    raise InvalidRequest(f"input {spec.name} holds {shorten(element)!r}", allowed="a text")


def _number(spec: ModelTensor, element: object) -> int | float:
    """Check the element of a numeric input. Return an integer unchanged, and an FP32 as its shortest decimal number.

    A client that means 7.3 can only send the nearest FP32. That number is read as 7.3, so that it gives the same image
    as 7.3 in JSON. `spec` names the datatype of the input. An element that is not a number of this datatype raises
    InvalidRequest.
    """
    try:
        if isinstance(element, bool):
            raise TypeError
        if spec.datatype == "FP32" and isinstance(element, int | float):
            return float(str(np.frombuffer(struct.pack("<f", element), "<f4")[0]))
        if isinstance(element, int):
            struct.pack(_CODES[spec.datatype], element)
            return element
        raise TypeError
    except (TypeError, OverflowError, struct.error):
        raise InvalidRequest(f"input {spec.name} holds {shorten(element)!r}", allowed=f"an {spec.datatype}") from None


def shorten(value: object) -> object:
    """Return a client's value in a form that is short enough for an error message.

    Long texts are cut. Huge integers, lists and objects are replaced by a description.
    """
    if isinstance(value, str):
        return value[:MAX_ECHO]
    if isinstance(value, int) and abs(value) > _LARGE:
        return "a number with too many digits"
    return value if value is None or isinstance(value, bool | int | float) else type(value).__name__
