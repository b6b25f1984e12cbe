"""Protocols: request formats, and detection of unsupported servers before the load."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import HttpRequest, HttpResponse
from stillhouse.serve.loadgen.protocols import ImageProtocol, OpenAIProtocol, ProtocolName, open_protocol
from stillhouse.serve.loadgen.request_class import FieldValue, RequestClass

INPUTS = [
    {"name": "PROMPT", "datatype": "BYTES", "shape": [1]},
    {"name": "SEED", "datatype": "INT64", "shape": [1]},
    {"name": "STEPS", "datatype": "INT32", "shape": [1]},
    {"name": "GUIDANCE", "datatype": "FP32", "shape": [1]},
]


def opened(name: ProtocolName, classes: tuple[RequestClass, ...], answers: Mapping[str, object]) -> ImageProtocol:
    async def send(request: HttpRequest) -> HttpResponse:
        document = answers.get(request.path)
        return (
            HttpResponse(404, b"no such thing")
            if document is None
            else HttpResponse(200, json.dumps(document).encode())
        )

    return asyncio.run(open_protocol(name, classes, send))


def request_class(**fields: FieldValue) -> RequestClass:
    return RequestClass("pro", 1.0, "shapes", fields)


def kserve(item: RequestClass, extensions: tuple[str, ...] = (), batched: bool = False) -> ImageProtocol:
    inputs = [{**tensor, "shape": [-1, 1] if batched else [1]} for tensor in INPUTS]
    answers = {
        "/v2": {"name": "s", "extensions": extensions},
        "/v2/models/shapes": {"name": "shapes", "inputs": inputs},
    }
    return opened("kserve", (item,), answers)


def test_openai_request_has_the_fields_of_the_class_only() -> None:
    message = opened("openai", (), {}).make_request(request_class(steps=35, size="64x64"), "a circle")
    assert (message.method, message.path) == ("POST", "/v1/images/generations")
    fields = {"model": "shapes", "prompt": "a circle", "n": 1, "steps": 35, "size": "64x64"}
    assert json.loads(message.body) == fields


@pytest.mark.parametrize(
    ("body", "holds"),
    [(b'{"data":[{"b64_json":"AA"}]}', True), (b'{"data":[{"url":"http://x"}]}', True), (b"<html>", False)],
)
def test_openai_response_has_an_image_or_its_url(body: bytes, holds: bool) -> None:
    assert OpenAIProtocol().has_image(body) is holds


@pytest.mark.parametrize("batched", [False, True])
def test_kserve_inputs_have_the_declared_types_and_shapes(batched: bool) -> None:
    item = request_class(steps=35, guidance=2, seed=7)
    message = kserve(item, batched=batched).make_request(item, "a circle")
    assert (message.method, message.path) == ("POST", "/v2/models/shapes/infer")
    shape = [1, 1] if batched else [1]
    assert json.loads(message.body) == {
        "inputs": [
            {"name": "PROMPT", "datatype": "BYTES", "shape": shape, "data": ["a circle"]},
            {"name": "STEPS", "datatype": "INT32", "shape": shape, "data": [35]},
            {"name": "GUIDANCE", "datatype": "FP32", "shape": shape, "data": [2.0]},
            {"name": "SEED", "datatype": "INT64", "shape": shape, "data": [7]},
        ]
    }


def test_binary_outputs_are_requested_if_supported() -> None:
    message = kserve(request_class(), ("binary_tensor_data",)).make_request(request_class(), "a circle")
    assert json.loads(message.body)["parameters"] == {"binary_data_output": True}
    assert kserve(request_class()).has_image(b'{"outputs":[]}')
    assert not kserve(request_class()).has_image(b'{"error":""}')


def test_unknown_model_inputs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no input of model 'shapes' 'SAMPLER'"):
        kserve(request_class(sampler="ddim"))


def test_server_without_the_protocol_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="answers /v2 with 404: no such thing; try --protocol openai"):
        opened("kserve", (request_class(),), {})
    with pytest.raises(InvalidRequest, match="/v2/models/shapes with 404"):
        opened("kserve", (request_class(),), {"/v2": {}})
    with pytest.raises(StillhouseError, match="not with a JSON object"):
        opened("kserve", (request_class(),), {"/v2": ["a list"]})
    with pytest.raises(StillhouseError, match="the metadata of model 'shapes' has no valid inputs"):
        opened("kserve", (request_class(),), {"/v2": {}, "/v2/models/shapes": {"name": "shapes"}})
