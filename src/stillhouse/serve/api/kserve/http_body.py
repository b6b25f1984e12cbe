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
    """An input tensor in the JSON of an inference request.

    The elements are in `data`, or follow the JSON as bytes. In the latter case, the parameter `binary_data_size` says
    how many bytes belong to the tensor.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """An output tensor that the client requests. The parameter `binary_data` asks for bytes instead of JSON."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON part of an inference request."""

    inputs: list[RequestInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class ParsedBody(NamedTuple):
    """The parsed body of an inference request.

    Args:
        inputs: input tensors.
        parameters: request parameters without `binary_data_output`.
        id: request id, which the response repeats; None if absent.
        requested: names of the requested outputs, in order, each with True if the output is sent as bytes after the
            JSON, and False if it is sent in the JSON. Empty if the client names no outputs, which requests all outputs.
        is_binary: whether outputs that `requested` does not name are sent as bytes after the JSON.
    """

    inputs: Sequence[InputTensor]
    parameters: Mapping[str, Any]
    id: str | None
    requested: Mapping[str, bool]
    is_binary: bool


def parse_body(body: bytes, header_length: str | None) -> ParsedBody:
    """Parse the body of an inference request.

    Args:
        body: JSON, followed by the bytes of binary tensors.
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
            raise InvalidRequest(f"binary_data_size of input {tensor.name[:MAX_ECHO]} is {size}, but only {rest}")
        inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, body[end : end + size]))
        end += size
    if end < len(body):
        raise InvalidRequest(
            f"{len(body) - end} bytes of the body belong to no input",
            allowed="as many bytes after the JSON as the binary_data_size of all inputs add up to",
        )
    parameters = dict(request.parameters)
    is_binary = _check_bool("binary_data_output", parameters.pop("binary_data_output", False))
    check_outputs([output.name for output in request.outputs])
    requested = {output.name: _is_binary(output, is_binary) for output in request.outputs}
    return ParsedBody(inputs, parameters, request.id, requested, is_binary)


def format_body(
    fields: Mapping[str, Any], outputs: Sequence[OutputTensor], parsed: ParsedBody
) -> tuple[bytes, int | None]:
    """Return the body of an inference response, and the size of its JSON in bytes (None if the body is only JSON).

    Args:
        fields: fields of the JSON besides `outputs`, the output tensors.
        parsed: body of the request, which says whether each output is sent as JSON or as bytes after it.
    """
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
    """Decode JSON and return it as an object of the type `schema`.

    Raises:
        InvalidRequest: the content is not JSON, or does not match the type.
    """
    try:
        return msgspec.json.decode(content, type=schema)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid: {error}") from None


def _header_end(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
    if not is_number or not 0 < int(header_length) <= len(body):
        allowed = f"a number from 1 to {len(body)}, which is the length of the body"
        raise InvalidRequest(f"Inference-Header-Content-Length is {header_length[:MAX_ECHO]!r}", allowed=allowed)
    return int(header_length)


def _binary_size(tensor: RequestInput) -> int | None:
    """Return the number of bytes after the JSON that belong to an input; None if its elements are in the JSON.

    Raises:
        InvalidRequest: the parameters of the input are invalid.
    """
    _check_parameters(f"input {tensor.name[:MAX_ECHO]}", tensor.parameters, "binary_data_size")
    if "binary_data_size" not in tensor.parameters:
        return None
    size = tensor.parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        problem = f"binary_data_size of input {tensor.name[:MAX_ECHO]} is not a number of bytes"
        raise InvalidRequest(problem, allowed="a whole number from 0")
    if tensor.data is not None:
        allowed = "either data or binary_data_size"
        raise InvalidRequest(f"input {tensor.name[:MAX_ECHO]} has data and binary_data_size", allowed=allowed)
    return size


def _is_binary(output: RequestedOutput, default: bool) -> bool:
    _check_parameters(f"output {output.name}", output.parameters, "binary_data")
    return _check_bool("binary_data", output.parameters.get("binary_data", default))


def _check_parameters(owner: str, parameters: Mapping[str, Any], allowed_name: str) -> None:
    unknown = next((name for name in parameters if name != allowed_name), None)
    if unknown is not None:
        raise InvalidRequest(
            f"parameter {unknown[:MAX_ECHO]!r} of {owner} is not supported", allowed=f"only {allowed_name}"
        )


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is not a boolean", allowed="true or false")
    return value


def _encode_elements(output: OutputTensor) -> bytes:
    """Encode the elements of a tensor as a flat JSON list.

    Each row of an image is encoded by a call of its own, because one call for a large image would hold the GIL for too
    long.
    """
    array = np.frombuffer(output.content, _CODES[output.datatype]).reshape(output.shape[0], -1)
    return b"[" + b",".join(msgspec.json.encode(row.tolist())[1:-1] for row in array) + b"]"
