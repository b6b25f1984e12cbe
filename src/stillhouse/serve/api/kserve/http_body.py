"""Bodies of HTTP inference requests and responses: JSON, followed by the bytes of binary tensors."""

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
    """An input tensor. Its content is `data`, or follows the JSON as `binary_data_size` bytes."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """An output tensor that the client requests."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON part of an inference request."""

    inputs: list[RequestInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class ParsedBody(NamedTuple):
    """A parsed request body.

    Args:
        inputs: input tensors.
        parameters: request parameters without `binary_data_output`.
        id: request id, echoed in the response.
        requested: requested outputs in order, and whether each is binary; empty if all outputs are requested.
        is_binary: whether outputs are binary that `requested` does not name.
    """

    inputs: Sequence[InputTensor]
    parameters: Mapping[str, Any]
    id: str | None
    requested: Mapping[str, bool]
    is_binary: bool


def parse_body(body: bytes, header_length: str | None) -> ParsedBody:
    """Parse a request body.

    Args:
        body: JSON, followed by binary tensors.
        header_length: value of the header Inference-Header-Content-Length, the size of the JSON in bytes; None if the
            body is only JSON.

    Raises:
        InvalidRequest: the body violates the protocol.
    """
    end = _header_end(body, header_length)
    request = decode_json(body[:end], InferenceRequest)
    inputs = []
    for tensor in request.inputs:
        size = _binary_size(tensor)
        if size is None:
            inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data or []))
            continue
        if size > len(body) - end:
            rest = f"{len(body) - end} bytes are left of the body"
            raise InvalidRequest(f"binary_data_size of input {tensor.name[:MAX_ECHO]} is {size}, and {rest}")
        inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, body[end : end + size]))
        end += size
    if end < len(body):
        raise InvalidRequest(
            f"{len(body) - end} bytes of the body belong to no input",
            allowed="the sum of binary_data_size of all inputs",
        )
    parameters = dict(request.parameters)
    is_binary = _check_bool("binary_data_output", parameters.pop("binary_data_output", False))
    check_outputs([output.name for output in request.outputs])
    requested = {output.name: _is_binary(output, is_binary) for output in request.outputs}
    return ParsedBody(inputs, parameters, request.id, requested, is_binary)


def format_body(
    fields: Mapping[str, Any], outputs: Sequence[OutputTensor], parsed: ParsedBody
) -> tuple[bytes, int | None]:
    """Return a response body and the size of its JSON in bytes; the size is None if the body is only JSON."""
    headers, tail = [], []
    for output in outputs:
        header: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if parsed.requested.get(output.name, parsed.is_binary):
            header["parameters"] = {"binary_data_size": len(output.content)}
            tail.append(output.content)
        else:
            header["data"] = msgspec.Raw(_encode_elements(output))
        headers.append(header)
    json_part = msgspec.json.encode({**fields, "outputs": headers})
    return (b"".join([json_part, *tail]), len(json_part)) if tail else (json_part, None)


def decode_json(content: bytes, schema: type[T]) -> T:
    """Decode JSON to a type.

    Raises:
        InvalidRequest: the content is not JSON, or does not match the type.
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
    """Return the size in bytes of a binary input; None if its elements are in the JSON."""
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
    unknown = next((name for name in parameters if name != allowed), None)
    if unknown is not None:
        raise InvalidRequest(f"parameter {unknown[:MAX_ECHO]!r} of {owner}", allowed=allowed)


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is not a boolean", allowed="true or false")
    return value


def _encode_elements(output: OutputTensor) -> bytes:
    """Encode the elements as a flat JSON list.

    Rows are encoded one by one, because a single call for a large image would hold the GIL for too long.
    """
    array = np.frombuffer(output.content, _CODES[output.datatype]).reshape(output.shape[0], -1)
    return b"[" + b",".join(msgspec.json.encode(row.tolist())[1:-1] for row in array) + b"]"
