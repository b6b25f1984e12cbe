"""The body of an inference over HTTP: JSON, and behind it the bytes of those tensors that are not in it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.kserve.protocol import check_outputs
from stillhouse.serve.api.kserve.tensors import MAX_ECHO, InputTensor, OutputTensor

T = TypeVar("T")
_CODES = {"UINT8": "u1", "INT64": "<i8"}


class RequestInput(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor of a request; its content is `data`, or so many bytes behind the JSON as its parameters say."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of one picture."""

    inputs: list[RequestInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class ParsedBody(NamedTuple):
    """What a body says.

    Args:
        id: told back.
        wanted: outputs by name, in order, and whether as bytes; empty, all.
        is_binary: whether outputs that are not named come as bytes.
    """

    inputs: Sequence[InputTensor]
    parameters: Mapping[str, Any]
    id: str | None
    requested: Mapping[str, bool]
    is_binary: bool


def parse_body(body: bytes, header_length: str | None) -> ParsedBody:
    """Take a body apart: JSON, and behind it the bytes of those inputs that say so.

    Args:
        body: of the request.
        header_length: how many bytes of it are JSON; None, all.

    Raises:
        InvalidRequest: a body that is not as the protocol has it.
    """
    end = _header_end(body, header_length)
    asked = decode_json(body[:end], InferenceRequest)
    inputs = []
    for tensor in asked.inputs:
        size = _binary_size(tensor)
        if size is None:
            inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data or []))
            continue
        if size > len(body) - end:
            left = f"{len(body) - end} bytes are left of the body"
            raise InvalidRequest(f"binary_data_size of input {tensor.name[:MAX_ECHO]} is {size}, and {left}")
        inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, body[end : end + size]))
        end += size
    if end < len(body):
        raise InvalidRequest(f"{len(body) - end} bytes of the body are no input's", allowed="as many as inputs say")
    parameters = dict(asked.parameters)
    is_binary = _check_bool("binary_data_output", parameters.pop("binary_data_output", False))
    check_outputs([output.name for output in asked.outputs])
    wanted = {output.name: _is_binary(output, is_binary) for output in asked.outputs}
    return ParsedBody(inputs, parameters, asked.id, wanted, is_binary)


def format_body(
    fields: Mapping[str, Any], outputs: Sequence[OutputTensor], parsed: ParsedBody
) -> tuple[bytes, int | None]:
    """A body: JSON, and behind it the outputs that are wanted as bytes; and how many bytes are JSON, None where all."""
    heads, tail = [], []
    for output in outputs:
        head: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if parsed.requested.get(output.name, parsed.is_binary):
            head["parameters"] = {"binary_data_size": len(output.content)}
            tail.append(output.content)
        else:
            head["data"] = msgspec.Raw(_encode_elements(output))
        heads.append(head)
    header = msgspec.json.encode({**fields, "outputs": heads})
    return (b"".join([header, *tail]), len(header)) if tail else (header, None)


def decode_json(content: bytes, schema: type[T]) -> T:
    """JSON of a kind.

    Raises:
        InvalidRequest: it is none, or another.
    """
    try:
        return msgspec.json.decode(content, type=schema)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body: {error}") from None


def _header_end(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
    if not is_number or not 0 < int(header_length) <= len(body):
        allowed = f"a number from 1 to {len(body)}, which is the length of the body"
        raise InvalidRequest(f"Inference-Header-Content-Length is {header_length[:MAX_ECHO]!r}", allowed=allowed)
    return int(header_length)


def _binary_size(tensor: RequestInput) -> int | None:
    """Bytes of an input behind the JSON; None where its elements are in it."""
    _check_parameters(f"input {tensor.name[:MAX_ECHO]}", tensor.parameters, "binary_data_size")
    if "binary_data_size" not in tensor.parameters:
        return None
    size = tensor.parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidRequest(f"binary_data_size of input {tensor.name[:MAX_ECHO]}", allowed="a number of bytes")
    if tensor.data is not None:
        raise InvalidRequest(f"input {tensor.name[:MAX_ECHO]} has data and binary_data_size", allowed="one of them")
    return size


def _is_binary(output: RequestedOutput, default: bool) -> bool:
    _check_parameters(f"output {output.name}", output.parameters, "binary_data")
    return _check_bool("binary_data", output.parameters.get("binary_data", default))


def _check_parameters(owner: str, parameters: Mapping[str, Any], allowed: str) -> None:
    other = next((name for name in parameters if name != allowed), None)
    if other is not None:
        raise InvalidRequest(f"parameter {other[:MAX_ECHO]!r} of {owner}", allowed=allowed)


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is no boolean", allowed="true or false")
    return value


def _encode_elements(output: OutputTensor) -> bytes:
    """The elements as a JSON list, row after row.

    Row by row, because while one call encodes all of a large picture nothing else in this process can run.
    """
    array = np.frombuffer(output.content, _CODES[output.datatype]).reshape(output.shape[0], -1)
    return b"[" + b",".join(msgspec.json.encode(row.tolist())[1:-1] for row in array) + b"]"
