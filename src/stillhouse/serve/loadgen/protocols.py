"""Dialects: how a picture is asked for, and how an answer is known to hold one."""

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
    """One protocol."""

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """A request of that kind."""

    def has_image(self, body: bytes) -> bool:
        """Whether an answer with a good status holds what was asked for."""


@dataclass(frozen=True, slots=True)
class OpenAIProtocol:
    """OpenAI's images."""

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """See `Dialect`. Fields that this protocol does not have stand beside those that it has."""
        asked = {"model": request_class.model, "prompt": prompt, "n": 1, **request_class.fields}
        return HttpRequest("POST", "/v1/images/generations", json.dumps(asked).encode(), _JSON)

    def has_image(self, body: bytes) -> bool:
        """See `Dialect`."""
        return b'"b64_json"' in body or b'"url"' in body


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input of a model as its metadata tells it: the type, and whether a batch's axis is before its own."""

    datatype: str
    is_batched: bool


@dataclass(frozen=True, slots=True)
class KServeProtocol:
    """KServe v2 over HTTP.

    Args:
        inputs: by model and name.
        is_binary: whether pictures may come as bytes behind the JSON, which spares both sides thousands of numbers.
    """

    inputs: Mapping[str, Mapping[str, ModelInput]]
    is_binary: bool = False

    def make_request(self, request_class: RequestClass, prompt: str) -> HttpRequest:
        """See `Dialect`. Every field is the input of its name in capital letters."""
        known = self.inputs[request_class.model]
        told = {"PROMPT": prompt, **{name.upper(): value for name, value in request_class.fields.items()}}
        asked: dict[str, Any] = {"inputs": [_input_tensor(name, value, known[name]) for name, value in told.items()]}
        if self.is_binary:
            asked["parameters"] = {"binary_data_output": True}
        return HttpRequest("POST", f"/v2/models/{request_class.model}/infer", json.dumps(asked).encode(), _JSON)

    def has_image(self, body: bytes) -> bool:
        """See `Dialect`."""
        return b'"outputs"' in body


async def open_protocol(
    name: ProtocolName, classes: Sequence[RequestClass], send_request: SendRequest
) -> ImageProtocol:
    """The dialect of that name, after what must be known of the server was asked.

    Args:
        name: of the protocol.
        kinds: what will be asked for.
        ask: sends a message and waits for the reply.

    Raises:
        InvalidRequest: a model that does not take what a kind asks for.
        StillhouseError: the server does not answer as this protocol wants it.
    """
    if name == "openai":
        return OpenAIProtocol()
    server = await _fetch_json(send_request, "/v2")
    inputs = {model: await _fetch_inputs(send_request, model) for model in {kind.model for kind in classes}}
    for kind in classes:
        for field in ("prompt", *kind.fields):
            check_choice(f"input of model {kind.model!r}", field.upper(), inputs[kind.model])
    return KServeProtocol(inputs, "binary_tensor_data" in server.get("extensions", ()))


async def _fetch_inputs(send_request: SendRequest, model: str) -> Mapping[str, ModelInput]:
    told = await _fetch_json(send_request, f"/v2/models/{model}")
    try:
        return {one["name"]: ModelInput(one["datatype"], len(one["shape"]) > 1) for one in told["inputs"]}
    except (KeyError, TypeError) as error:
        raise StillhouseError(f"model {model!r} does not tell its inputs", fix="does it speak KServe v2?") from error


async def _fetch_json(send_request: SendRequest, path: str) -> dict[str, Any]:
    reply = await send_request(HttpRequest("GET", path))
    if not reply.is_success:
        said = reply.body[:200].decode(errors="replace")
        raise InvalidRequest(f"the server answers {path} with {reply.status}: {said}", fix="try --protocol openai")
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise StillhouseError(f"the server answers {path} without JSON", fix="try --protocol openai")
    return told


def _input_tensor(name: str, value: FieldValue, model_input: ModelInput) -> dict[str, Any]:
    data = float(value) if model_input.datatype in _FLOATS else value
    shape = [1, 1] if model_input.is_batched else [1]
    return {"name": name, "datatype": model_input.datatype, "shape": shape, "data": [data]}
