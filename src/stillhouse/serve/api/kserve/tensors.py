"""Named tensors, as KServe's protocol has them: to a request, and from a picture.

What they mean is said here once. The doors over HTTP and gRPC differ in how tensors are packed, and in nothing else.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.serve.request_handle import PreviewImage

Datatype: TypeAlias = Literal["BYTES", "FP32", "INT32", "INT64", "UINT8"]

MAX_ECHO = 64
"""Letters of a name that nobody knows that are told back."""
_LARGE = 10**18
_CODES = {"INT64": "<q", "INT32": "<i", "FP32": "<f"}
_LENGTH = struct.Struct("<I")


class ModelTensor(NamedTuple):
    """A tensor of a model; a size of its shape is -1 where the request decides it."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}, {self.datatype} {list(self.shape)}"


class InputTensor(NamedTuple):
    """A tensor as a client sent it, not looked at yet.

    Args:
        name, datatype, shape: as told.
        content: bytes, little-endian and row after row, each text behind its length in 4 bytes; or the elements.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes | Sequence[object]


class OutputTensor(NamedTuple):
    """A tensor for a client; its content is bytes as in `Given`."""

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
    """What the inputs ask for.

    Args:
        inputs: those of `INPUTS`; only PROMPT must be among them.
        seed: where SEED is not.

    Raises:
        InvalidRequest: an input that does not exist, is given twice, or has another datatype, shape or content.

    >>> request_of([Given("PROMPT", "BYTES", [1], ["a red circle"]), Given("STEPS", "INT32", [1], [3])], seed=7).steps
    3
    """
    values: dict[str, Any] = {}
    for given in inputs:
        check_choice("input", given.name[:MAX_ECHO], INPUTS)
        if given.name in values:
            raise InvalidRequest(f"two inputs named {given.name}", allowed="one of each")
        values[given.name] = _parse_element(given, INPUTS[given.name])
    if "PROMPT" not in values:
        raise InvalidRequest("a request without a prompt", allowed=f"the input {PROMPT}")
    return ImageRequest(
        values["PROMPT"],
        negative_prompt=values.get("NEGATIVE_PROMPT", ""),
        seed=values.get("SEED", seed),
        steps=values.get("STEPS"),
        guidance=values.get("GUIDANCE"),
    )


def image_tensors(request: ImageRequest, content: bytes) -> tuple[OutputTensor, ...]:
    """The outputs of a resolved request whose picture is `content`, the levels of [height, width, 3]."""
    assert request.height is not None and request.width is not None
    return (
        OutputTensor(IMAGE.name, IMAGE.datatype, (request.height, request.width, 3), content),
        OutputTensor(SEED.name, SEED.datatype, SEED.shape, struct.pack("<q", request.seed)),
    )


def preview_tensors(preview: PreviewImage) -> tuple[OutputTensor, ...]:
    """A preview, a WebP file, and after how many evaluations it was seen."""
    return (
        OutputTensor(PREVIEW.name, PREVIEW.datatype, PREVIEW.shape, pack_bytes(preview.content)),
        OutputTensor(STEP.name, STEP.datatype, STEP.shape, struct.pack("<i", preview.index)),
    )


def select_outputs(outputs: Sequence[OutputTensor], names: Sequence[str]) -> Sequence[OutputTensor]:
    """These of the outputs, in this order; all of them where none is named."""
    by_name = {output.name: output for output in outputs}
    return [by_name[name] for name in names] if names else outputs


def pack_bytes(content: bytes) -> bytes:
    r"""An element of a BYTES tensor, behind its length.

    >>> packed_text(b"abc")
    b'\x03\x00\x00\x00abc'
    """
    return _LENGTH.pack(len(content)) + content


def _parse_element(tensor: InputTensor, spec: ModelTensor) -> str | int | float:
    """The only element of an input.

    Raises:
        InvalidRequest: it is not the only one, or not of the input's type.
    """
    if tensor.datatype != spec.datatype or tuple(tensor.shape) != spec.shape:
        told = f"{tensor.datatype[:MAX_ECHO]} {list(tensor.shape[:8])}"
        raise InvalidRequest(f"input {spec.name} is {told}", allowed=f"{spec.datatype} {list(spec.shape)}")
    elements = _unpack(tensor.content, spec) if isinstance(tensor.content, bytes) else tensor.content
    if len(elements) != 1:
        raise InvalidRequest(f"input {spec.name} has {len(elements)} elements", allowed="1")
    return _text(spec, elements[0]) if spec.datatype == "BYTES" else _number(spec, elements[0])


def _unpack(content: bytes, spec: ModelTensor) -> Sequence[object]:
    if spec.datatype == "BYTES":
        head = _LENGTH.size
        if len(content) < head or _LENGTH.unpack_from(content)[0] != len(content) - head:
            allowed = "the length of the text in 4 bytes, little-endian, and then the text"
            raise InvalidRequest(f"input {spec.name} has {len(content)} bytes that are no text", allowed=allowed)
        return [content[head:]]
    code = _CODES[spec.datatype]
    if len(content) != struct.calcsize(code):
        allowed = f"{struct.calcsize(code)} for {spec.datatype} {list(spec.shape)}"
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
    """An INT64 or INT32 as it is, and of an FP32 the shortest decimal number that it stands for.

    A client that means 7.3 can only send the FP32 next to it. As 7.3 it draws what every other door draws for 7.3.
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
    """A value that can be told back: of a long text its beginning, of an enormous number none of its digits."""
    if isinstance(value, str):
        return value[:MAX_ECHO]
    if isinstance(value, int) and abs(value) > _LARGE:
        return "a number with too many digits"
    return value if value is None or isinstance(value, bool | int | float) else type(value).__name__
