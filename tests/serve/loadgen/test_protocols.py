"""Both protocols: what is asked is what they say, and what a server cannot do is known before it is loaded."""

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


def opened(name: ProtocolName, kinds: tuple[RequestClass, ...], answers: Mapping[str, object]) -> ImageProtocol:
    async def ask(message: HttpRequest) -> HttpResponse:
        told = answers.get(message.path)
        return HttpResponse(404, b"no such thing") if told is None else HttpResponse(200, json.dumps(told).encode())

    return asyncio.run(open_protocol(name, kinds, ask))


def kind(**fields: FieldValue) -> RequestClass:
    return RequestClass("pro", 1.0, "shapes", fields)


def kserve(asked: RequestClass, extensions: tuple[str, ...] = (), batched: bool = False) -> ImageProtocol:
    inputs = [{**one, "shape": [-1, 1] if batched else [1]} for one in INPUTS]
    answers = {
        "/v2": {"name": "s", "extensions": extensions},
        "/v2/models/shapes": {"name": "shapes", "inputs": inputs},
    }
    return opened("kserve", (asked,), answers)


def test_openai_is_told_what_the_kind_says_and_nothing_else() -> None:
    message = opened("openai", (), {}).make_request(kind(steps=35, size="64x64"), "a circle")
    assert (message.method, message.path) == ("POST", "/v1/images/generations")
    told = {"model": "shapes", "prompt": "a circle", "n": 1, "steps": 35, "size": "64x64"}
    assert json.loads(message.body) == told


@pytest.mark.parametrize(
    ("body", "holds"),
    [(b'{"data":[{"b64_json":"AA"}]}', True), (b'{"data":[{"url":"http://x"}]}', True), (b"<html>", False)],
)
def test_an_openai_answer_holds_a_picture_or_its_address(body: bytes, holds: bool) -> None:
    assert OpenAIProtocol().has_image(body) is holds


@pytest.mark.parametrize("batched", [False, True])
def test_kserve_is_told_the_inputs_in_the_types_and_shapes_that_the_model_declares(batched: bool) -> None:
    asked = kind(steps=35, guidance=2, seed=7)
    message = kserve(asked, batched=batched).make_request(asked, "a circle")
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


def test_pictures_come_as_bytes_where_the_server_can_send_them_so() -> None:
    message = kserve(kind(), ("binary_tensor_data",)).make_request(kind(), "a circle")
    assert json.loads(message.body)["parameters"] == {"binary_data_output": True}
    assert kserve(kind()).has_image(b'{"outputs":[]}')
    assert not kserve(kind()).has_image(b'{"error":""}')


def test_inputs_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no input of model 'shapes' 'SAMPLER'"):
        kserve(kind(sampler="ddim"))


def test_a_server_that_does_not_speak_it_is_told_from_one_that_does() -> None:
    with pytest.raises(InvalidRequest, match="answers /v2 with 404: no such thing; try --protocol openai"):
        opened("kserve", (kind(),), {})
    with pytest.raises(InvalidRequest, match="/v2/models/shapes with 404"):
        opened("kserve", (kind(),), {"/v2": {}})
    with pytest.raises(StillhouseError, match="without JSON"):
        opened("kserve", (kind(),), {"/v2": ["a list"]})
    with pytest.raises(StillhouseError, match="has no input metadata"):
        opened("kserve", (kind(),), {"/v2": {}, "/v2/models/shapes": {"name": "shapes"}})
