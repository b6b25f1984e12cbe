"""Protocols of image servers, which format HTTP requests and recognise responses with an image."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from stillhouse.check import check_choice
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import HttpRequest, HttpResponse
from stillhouse.serve.loadgen.request_class import FieldValue, RequestClass

ProtocolName: TypeAlias = Literal["openai", "kserve"]
SendRequest: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]
_JSON = {"content-type": "application/json"}
_FLOATS = ("FP16", "FP32", "FP64")


class ImageProtocol(Protocol):
    """Interface of the protocols in which the load generator can talk to image servers."""

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """Return the HTTP request that asks for one image with this prompt and the fields of a class of requests."""

    def has_image(self, body: bytes) -> bool:
        """Return whether the body of a successful response contains an image."""


@dataclass(frozen=True, slots=True)
class OpenAIProtocol:
    """OpenAI's Images API over HTTP: formats requests and recognises responses with an image."""

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """Return the HTTP request that asks for one image with this prompt and the fields of a class of requests.

        The fields of the class, such as steps, are sent as top-level JSON fields, although OpenAI's API lacks some.
        """
        body = {"model": request_class.model, "prompt": prompt, "n": 1, **request_class.fields}
        return HttpRequest("POST", "/v1/images/generations", json.dumps(body).encode(), _JSON)

    def has_image(self, body: bytes) -> bool:
        """Return whether the body of a successful response contains an image, in base64 or as a URL."""
        return b'"b64_json"' in body or b'"url"' in body


@dataclass(frozen=True, slots=True)
class ModelInput:
    """Metadata of a model's input tensor on a KServe server.

    Args:
        datatype: KServe datatype, for example FP32.
        is_batched: whether the shape begins with a batch axis.
    """

    datatype: str
    is_batched: bool


@dataclass(frozen=True, slots=True)
class KServeProtocol:
    """KServe's inference protocol, version 2, over HTTP: formats requests and recognises responses with an image.

    Args:
        inputs: metadata of input tensors by name of the model, then by name of the input.
        is_binary: whether the server supports binary tensors, which are cheaper to encode than JSON numbers.
    """

    inputs: Mapping[str, Mapping[str, ModelInput]]
    is_binary: bool = False

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """Return the HTTP request that asks for one image with this prompt and the fields of a class of requests.

        The prompt and each field of the class are sent as input tensors named in capitals, for example STEPS.
        """
        model_inputs = self.inputs[request_class.model]
        metadata = {"PROMPT": prompt, **{name.upper(): value for name, value in request_class.fields.items()}}
        body: dict[str, Any] = {
            "inputs": [_input_tensor(name, value, model_inputs[name]) for name, value in metadata.items()]
        }
        if self.is_binary:
            body["parameters"] = {"binary_data_output": True}
        return HttpRequest("POST", f"/v2/models/{request_class.model}/infer", json.dumps(body).encode(), _JSON)

    def has_image(self, body: bytes) -> bool:
        """Return whether the body of a successful response contains output tensors."""
        return b'"outputs"' in body


async def open_protocol(
    name: ProtocolName, classes: Sequence[RequestClass], send_request: SendRequest
) -> ImageProtocol:
    """Return the protocol of this name. For "kserve", the metadata of the server and its models is read first.

    `classes` are the classes of requests that will be sent. `send_request` sends an HTTP request and returns the
    response. InvalidRequest is raised if the server does not answer with metadata, or a model lacks an input that a
    class needs. StillhouseError is raised if the metadata does not conform to the protocol.
    """
    if name == "openai":
        return OpenAIProtocol()
    server = await _fetch_json(send_request, "/v2")
    inputs = {
        model: await _fetch_inputs(send_request, model) for model in {request_class.model for request_class in classes}
    }
    for request_class in classes:
        for field in ("prompt", *request_class.fields):
            check_choice(f"input of model {request_class.model!r}", field.upper(), inputs[request_class.model])
    return KServeProtocol(inputs, "binary_tensor_data" in server.get("extensions", ()))


async def _fetch_inputs(send_request: SendRequest, model: str) -> Mapping[str, ModelInput]:
    metadata = await _fetch_json(send_request, f"/v2/models/{model}")
    try:
        return {
            tensor["name"]: ModelInput(tensor["datatype"], len(tensor["shape"]) > 1) for tensor in metadata["inputs"]
        }
    except (KeyError, TypeError) as error:
        raise StillhouseError(
            f"the metadata of model {model!r} has no valid inputs", fix="check that the server supports KServe v2"
        ) from error


async def _fetch_json(send_request: SendRequest, path: str) -> dict[str, Any]:
    response = await send_request(HttpRequest("GET", path))
    if not response.is_success:
        body = response.body[:200].decode(errors="replace")
        raise InvalidRequest(f"the server answers {path} with {response.status}: {body}", fix="try --protocol openai")
    try:
        metadata = json.loads(response.body)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise StillhouseError(f"the server answers {path}, but not with a JSON object", fix="try --protocol openai")
    return metadata


def _input_tensor(name: str, value: FieldValue, model_input: ModelInput) -> dict[str, Any]:
    data = float(value) if model_input.datatype in _FLOATS else value
    shape = [1, 1] if model_input.is_batched else [1]
    return {"name": name, "datatype": model_input.datatype, "shape": shape, "data": [data]}
