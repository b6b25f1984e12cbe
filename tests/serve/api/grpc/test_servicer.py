"""KServe's protocol over gRPC with Triton's client: a seed gives the pixels of `stillhouse generate`."""

from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from stillhouse import __version__
from stillhouse.pipelines.pipeline import Pipeline
from tests.serve.api.grpc.grpc_requests import KINDS, LONG, PROMPT, cancelled, facts, inputs, is_idle, message, refusal
from tests.serve.running import Running, wait_until


def test_server_and_models_are_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("free") and client.is_model_ready("pro", "1")
    assert not client.is_model_ready("other") and not client.is_model_ready("free", "2")


def test_metadata_equals_http(client: triton.InferenceServerClient) -> None:
    message = client.get_server_metadata(as_json=True)
    assert message == {"name": "stillhouse", "version": __version__, "extensions": ["binary_tensor_data"]}
    model = client.get_model_metadata("free")
    assert (model.name, list(model.versions), model.platform) == ("free", ["1"], "stillhouse")
    types = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.inputs}
    assert types == {name: (datatype, [1]) for name, (datatype, _) in KINDS.items()}
    outputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.outputs}
    assert outputs == {"IMAGE": ("UINT8", [-1, -1, 3]), "SEED": ("INT64", [1])}
    index = client.get_model_repository_index()
    assert [(output.name, output.version, output.state) for output in index.models] == [
        ("free", "1", "READY"),
        ("pro", "1", "READY"),
    ]


def test_seed_gives_the_pixels_of_generate(client: triton.InferenceServerClient, pipeline: Pipeline) -> None:
    result = client.infer("free", inputs(SEED=7), request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("IMAGE"), pipeline.generate(PROMPT, seed=7, steps=3).image)
    assert result.as_numpy("SEED").tolist() == [7] and result.as_numpy("IMAGE").dtype == np.uint8
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("free", "1", "seven")
    assert facts(result)["denoise_ms"] > 0


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_inputs_match_generate(
    client: triton.InferenceServerClient, stub: Any, pipeline: Pipeline, compression: str | None
) -> None:
    problem = {"SEED": 3, "STEPS": 4, "GUIDANCE": 7.3}
    packed = client.infer("pro", inputs(**problem, NEGATIVE_PROMPT="red"), compression_algorithm=compression)
    alone = pipeline.generate(PROMPT, seed=3, steps=4, guidance=7.3, negative_prompt="red")
    np.testing.assert_array_equal(packed.as_numpy("IMAGE"), alone.image)
    answer = triton.InferResult(stub.ModelInfer(message("pro", **problem, NEGATIVE_PROMPT=b"red")))
    np.testing.assert_array_equal(answer.as_numpy("IMAGE"), alone.image)


def test_requested_outputs_are_sent_in_order(client: triton.InferenceServerClient) -> None:
    expected = [triton.InferRequestedOutput(name) for name in ("SEED", "IMAGE")]
    result = client.infer("free", inputs(), outputs=expected)
    assert [output.name for output in result.get_response().outputs] == ["SEED", "IMAGE"]
    assert client.infer("free", inputs(), outputs=expected[:1]).as_numpy("IMAGE") is None


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ({"model": "other"}, "NOT_FOUND", "there is no model 'other'; allowed: free, pro"),
        ({"model_version": "2"}, "NOT_FOUND", "model 'free' has no version '2'; allowed: 1"),
        ({"inputs": inputs(STEPS=0)}, "INVALID_ARGUMENT", "steps is 0"),
        ({"inputs": inputs(GUIDANCE=float("inf"))}, "INVALID_ARGUMENT", "guidance is inf"),
        ({"inputs": inputs()[:0]}, "INVALID_ARGUMENT", "the request has no prompt"),
        ({"outputs": [triton.InferRequestedOutput("STEP")]}, "INVALID_ARGUMENT", "there is no output 'STEP'"),
        (
            {"parameters": {"previews": 2}},
            "INVALID_ARGUMENT",
            "allowed: previews with the streaming gRPC method ModelStreamInfer",
        ),
        ({"priority": 1}, "INVALID_ARGUMENT", "priority is 1"),
        ({"sequence_id": 5}, "INVALID_ARGUMENT", "a sequence of requests"),
        ({"timeout": 1}, "DEADLINE_EXCEEDED", "queue timeout expired"),
        ({"inputs": inputs(PROMPT="a" * (5 << 20))}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_error_names_what_is_allowed(
    client: triton.InferenceServerClient, options: dict[str, Any], status: str, text: str
) -> None:
    given, reason = refusal(client, **options)
    assert given == status and text in reason


def _without_a_shape(request: Any) -> None:
    del request.inputs[0].shape[:]


def _in_the_wrong_field(request: Any) -> None:
    request.inputs[1].datatype = "INT32"


def _twice(request: Any) -> None:
    request.raw_input_contents.extend([b"\0\0\0\0", bytes(8)])


def _too_few(request: Any) -> None:
    request.raw_input_contents.append(b"\0\0\0\0")


def _shared(request: Any) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


def _of_another_kind(request: Any) -> None:
    request.inputs[0].datatype = "FP16"


def _with_a_long_name(request: Any) -> None:
    request.inputs[0].name = "P" * 10**6


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (_without_a_shape, "input PROMPT is BYTES []; allowed: BYTES [1]"),
        (_in_the_wrong_field, "input SEED is INT32 [1]; allowed: INT64 [1]"),
        (_twice, "input PROMPT has contents and raw_input_contents"),
        (_too_few, "1 raw_input_contents for 2 inputs"),
        (_shared, "parameter 'shared_memory_region' of input PROMPT"),
        (_of_another_kind, "input PROMPT is FP16 [1]; allowed: BYTES [1]"),
        (_with_a_long_name, "there is no input 'PPPP"),
    ],
)
def test_oversized_message_is_refused(stub: Any, broken: Any, text: str) -> None:
    request = message(SEED=7)
    broken(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and text in str(caught.value.details())


def test_unknown_method_is_unimplemented(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_model_config("free")


def test_cancelled_call_cancels_its_request(server: Running, stub: Any) -> None:
    before = cancelled(server)
    call = stub.ModelInfer.future(message("pro", **LONG))
    wait_until(lambda: not is_idle(server))
    assert call.cancel()
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 1


def test_call_past_its_deadline_cancels_its_request(server: Running, client: triton.InferenceServerClient) -> None:
    before = cancelled(server)
    assert refusal(client, "pro", inputs=inputs(**LONG), client_timeout=0.2)[0] == "DEADLINE_EXCEEDED"
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 1
