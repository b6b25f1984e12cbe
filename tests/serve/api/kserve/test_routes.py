"""KServe's protocol over HTTP with Triton's client: a seed gives the pixels of `stillhouse generate`."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from stillhouse import __version__
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from tests.serve.running import Running

PROMPT = "a small red circle left of a big blue square"
KINDS: dict[str, tuple[str, Any]] = {
    "PROMPT": ("BYTES", np.object_),
    "NEGATIVE_PROMPT": ("BYTES", np.object_),
    "SEED": ("INT64", np.int64),
    "STEPS": ("INT32", np.int32),
    "GUIDANCE": ("FP32", np.float32),
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def inputs(is_binary: bool = True, **values: Any) -> list[triton.InferInput]:
    tensors = []
    for name, value in {"PROMPT": PROMPT, **values}.items():
        datatype, dtype = KINDS[name]
        tensor = triton.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype), binary_data=is_binary)
        tensors.append(tensor)
    return tensors


def refusal(client: triton.InferenceServerClient, model: str = "free", **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, **{"inputs": inputs(), **options})
    return caught.value


def test_server_and_models_are_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("free") and client.is_model_ready("pro", "1")
    assert not client.is_model_ready("other") and not client.is_model_ready("free", "2")


def test_server_metadata(client: triton.InferenceServerClient) -> None:
    message = client.get_server_metadata()
    assert message == {"name": "stillhouse", "version": __version__, "extensions": ["binary_tensor_data"]}


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata(client: triton.InferenceServerClient, version: str) -> None:
    message = client.get_model_metadata("free", version)
    assert (message["name"], message["versions"], message["platform"]) == ("free", ["1"], "stillhouse")
    types = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in message["inputs"]}
    assert types == {name: (datatype, [1]) for name, (datatype, _) in KINDS.items()}
    outputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in message["outputs"]}
    assert outputs == {"IMAGE": ("UINT8", [-1, -1, 3]), "SEED": ("INT64", [1])}


def test_repository_index_lists_the_tiers(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert [(item["name"], item["version"], item["state"]) for item in index] == [
        ("free", "1", "READY"),
        ("pro", "1", "READY"),
    ]


@pytest.mark.parametrize("is_binary", [True, False])
def test_seed_gives_the_pixels_of_generate(
    client: triton.InferenceServerClient, pipeline: Pipeline, is_binary: bool
) -> None:
    expected = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("SEED", "IMAGE")]
    result = client.infer("free", inputs(is_binary, SEED=7), outputs=expected, request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("IMAGE"), pipeline.generate(PROMPT, seed=7, steps=3).image)
    assert result.as_numpy("SEED").tolist() == [7] and result.as_numpy("IMAGE").dtype == np.uint8
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("free", "1", "seven")
    assert [output["name"] for output in response["outputs"]] == ["SEED", "IMAGE"]
    assert response["parameters"]["denoise_ms"] > 0


@pytest.mark.parametrize("is_binary", [True, False])
def test_inputs_match_generate(client: triton.InferenceServerClient, pipeline: Pipeline, is_binary: bool) -> None:
    given = {"SEED": 3, "STEPS": 4, "GUIDANCE": 7.3, "NEGATIVE_PROMPT": "red"}
    result = client.infer("pro", inputs(is_binary, **given), model_version="1")
    alone = pipeline.generate(PROMPT, seed=3, steps=4, guidance=7.3, negative_prompt="red")
    np.testing.assert_array_equal(result.as_numpy("IMAGE"), alone.image)


def test_images_without_a_seed_have_different_reported_seeds(
    client: triton.InferenceServerClient, pipeline: Pipeline
) -> None:
    first, second = (client.infer("free", inputs()) for _ in range(2))
    assert first.as_numpy("SEED") != second.as_numpy("SEED")
    again = pipeline.generate(PROMPT, seed=int(first.as_numpy("SEED")[0]), steps=3)
    np.testing.assert_array_equal(first.as_numpy("IMAGE"), again.image)


def test_only_requested_outputs_are_sent(client: triton.InferenceServerClient) -> None:
    result = client.infer("free", inputs(SEED=7), outputs=[triton.InferRequestedOutput("SEED")])
    assert result.as_numpy("IMAGE") is None and result.as_numpy("SEED").tolist() == [7]


def test_asyncio_client(server: Running, client: triton.InferenceServerClient) -> None:
    async def generate() -> Any:
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as other:
            return (await other.infer("free", inputs(SEED=7))).as_numpy("IMAGE")

    np.testing.assert_array_equal(asyncio.run(generate()), client.infer("free", inputs(SEED=7)).as_numpy("IMAGE"))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"model": "other"}, "404", "there is no model 'other'; allowed: free, pro"),
        ({"model_version": "2"}, "404", "model 'free' has no version '2'; allowed: 1"),
        ({"inputs": inputs(STEPS=0)}, "400", "steps is 0"),
        ({"inputs": inputs(STEPS=151)}, "400", "steps is 151; allowed: up to 150"),
        ({"inputs": inputs(SEED=-1)}, "400", "seed is -1"),
        ({"inputs": inputs(GUIDANCE=float("nan"))}, "400", "guidance is nan"),
        ({"inputs": inputs()[:0]}, "400", "the request has no prompt"),
        ({"inputs": [triton.InferInput("PROMPT", [2], "BYTES")]}, "400", "input PROMPT is BYTES [2]"),
        ({"outputs": [triton.InferRequestedOutput("PREVIEW")]}, "400", "there is no output 'PREVIEW'"),
        ({"outputs": [triton.InferRequestedOutput("SEED", class_count=1)]}, "400", "'classification' of output SEED"),
        ({"parameters": {"previews": 2}}, "400", "allowed: previews with the streaming gRPC method ModelStreamInfer"),
        ({"priority": 1}, "400", "priority is 1"),
        ({"sequence_id": 5}, "400", "a sequence of requests"),
        ({"request_compression_algorithm": "gzip"}, "400", "the body is compressed (gzip)"),
    ],
)
def test_error_names_what_is_allowed(
    client: triton.InferenceServerClient, options: dict[str, Any], status: str, message: str
) -> None:
    error = refusal(client, **options)
    assert error.status() == status and message in error.message()


def test_request_expires_in_the_queue(client: triton.InferenceServerClient) -> None:
    error = refusal(client, timeout=1)
    assert error.status() == "503" and "queue timeout expired" in error.message()
    assert client.infer("free", inputs(SEED=7), timeout=60_000_000).as_numpy("SEED").tolist() == [7]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"inputs": "\xff"}', {}, 400),
        (b'{"inputs": []}', {"inference_header_content_length": "99"}, 400),
        (b'{"inputs": []}', {"inference_header_content_length": "none"}, 400),
        (b"\x1f\x8b not gzip", {"content_encoding": "gzip"}, 400),
        (gzip.compress(bytes(10**8)), {}, 400),
    ],
)
def test_invalid_body_is_refused(server: Running, body: bytes, headers: dict[str, str], status: int) -> None:
    given, answer = server.send("POST", "/v2/models/free/infer", body, **headers)
    assert given == status and json.loads(answer)["error"]


def test_oversized_body_is_refused_before_it_is_sent(server: Running) -> None:
    connection = HTTPConnection(server.url.removeprefix("http://"))
    with closing(connection):
        connection.putrequest("POST", "/v2/models/free/infer")
        connection.putheader("content-length", str(2 << 20))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413 and json.loads(answer.read())["error"]


def test_health_of_an_unknown_model_is_an_error(server: Running) -> None:
    status, answer = server.get("/v2/models/other/ready")
    assert (status, json.loads(answer)) == (404, {"error": "there is no model 'other'; allowed: free, pro"})
    status, answer = server.get("/v2/models/free/versions/2")
    assert (status, json.loads(answer)) == (404, {"error": "model 'free' has no version '2'; allowed: 1"})
