"""Models, parameters and metadata of KServe's protocol."""

from dataclasses import replace
from typing import Any

import pytest

from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, read_manifest
from stillhouse.serve.api.http import NotFound
from stillhouse.serve.api.kserve.protocol import (
    MAX_PREVIEWS,
    RequestOptions,
    check_model,
    check_outputs,
    describe_model,
    make_generation_request,
    parse_parameters,
    response_parameters,
)
from stillhouse.serve.api.kserve.tensors import InputTensor
from stillhouse.serve.client import Client
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.engine.simulate import NO_REQUEST
from stillhouse.serve.request_handle import RequestHandle

CALLER = Client("key", "free", frozenset(["free"]))
PROMPT = InputTensor("PROMPT", "BYTES", [1], ["a red circle"])


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(find_pipeline("shapes"))


def test_timeout_is_the_queue_timeout() -> None:
    assert parse_parameters({"timeout": 2_500_000}) == RequestOptions(queue_timeout=2.5)
    assert parse_parameters({"timeout": 0}) == parse_parameters({}) == RequestOptions(queue_timeout=None)


def test_previews_require_a_stream() -> None:
    assert parse_parameters({"previews": 3}, is_stream=True).previews == 3
    assert parse_parameters({"previews": 0}).previews == 0
    with pytest.raises(
        InvalidRequest,
        match="previews cannot be sent in a single response; "
        "allowed: previews with the streaming gRPC method ModelStreamInfer",
    ):
        parse_parameters({"previews": 3})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"priority": 3},
            "priority is 3, but each model has a fixed priority; allowed: 0; "
            "request a model with a greater weight in the server's settings",
        ),
        ({"sequence_id": 7, "sequence_start": True}, "a sequence of requests"),
        ({"sequence_id": "one"}, "a sequence of requests"),
        ({"timeout": -1}, "timeout is -1; allowed: a whole number from 0"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": "1 s"}, "timeout is '1 s'"),
        ({"timeout": 10**400}, "timeout is 'a number with too many digits'"),
        ({"timeout": [1]}, "timeout is 'list'"),
        ({"previews": MAX_PREVIEWS + 1}, f"previews is 11; allowed: a whole number from 0 to {MAX_PREVIEWS}"),
        ({"preview": 1}, "there is no parameter 'preview'; .*did you mean 'previews'"),
        ({"x" * 10**6: 1}, "there is no parameter 'x{64}'"),
    ],
)
def test_unsupported_parameter_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_parameters(parameters, is_stream=True)
    assert len(str(caught.value)) < 400


def test_default_parameters_of_triton_clients_are_accepted() -> None:
    neutral = {"priority": 0, "sequence_id": 0, "sequence_start": False, "triton_enable_empty_final_response": True}
    assert parse_parameters(neutral) == RequestOptions()


def test_generation_request_has_raw_format_and_the_named_model() -> None:
    request = make_generation_request([PROMPT], {"timeout": 10**6, "previews": 2}, "free", CALLER, is_stream=True)
    assert (request.request.prompt, request.client, request.tier, request.format) == (
        "a red circle",
        CALLER,
        "free",
        "raw",
    )
    assert (request.queue_timeout, request.previews) == (1.0, 2)


def test_requests_without_a_seed_have_different_seeds() -> None:
    assert len({make_generation_request([PROMPT], {}, "free", CALLER).request.seed for _ in range(8)}) > 1


def test_model_has_one_version() -> None:
    for version in ("", "1"):
        check_model(["free"], "free", version, CALLER)
    with pytest.raises(NotFound, match="model 'free' has no version '2'; allowed: 1"):
        check_model(["free"], "free", "2", CALLER)


def test_unknown_model_is_not_found_and_another_tier_not_allowed() -> None:
    with pytest.raises(NotFound, match="there is no model 'fre'; allowed: free$"):
        check_model(["free", "pro"], "fre", "", CALLER)
    with pytest.raises(NotAllowed, match="this key may not use model 'pro'; allowed: free"):
        check_model(["free", "pro"], "pro", "", CALLER)
    check_model(["free", "pro"], "pro", "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["PREVIEW"], "there is no output 'PREVIEW'; allowed: IMAGE, SEED"),
        (["SEED", "SEED"], "output SEED is requested twice"),
        (["I" * 10**6], "there is no output 'I{64}'"),
    ],
)
def test_unknown_outputs_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_outputs(names)


def test_metadata_has_the_inputs_of_the_pipeline(manifest: Manifest) -> None:
    message = describe_model("free", manifest)
    assert (message["name"], message["versions"], message["platform"]) == ("free", ["1"], "stillhouse")
    names = [tensor["name"] for tensor in message["inputs"]]
    assert names == ["PROMPT", "NEGATIVE_PROMPT", "SEED", "STEPS", "GUIDANCE"]
    assert message["outputs"][0] == {"name": "IMAGE", "datatype": "UINT8", "shape": [-1, -1, 3]}
    guided = describe_model("free", replace(manifest, family_options={"in_channels": 4, "guidance_channels": 256}))
    assert "NEGATIVE_PROMPT" not in [tensor["name"] for tensor in guided["inputs"]]


def test_an_answer_tells_how_it_went_and_never_hides_that_another_tier_drew_it() -> None:
    order = make_generation_request([PROMPT], {}, "pro", CALLER)
    job = Job(
        "one",
        Tier("pro"),
        "key",
        BatchKey("shapes", 64, 64),
        StepPlan((2, 2)),
        replace(NO_REQUEST, request=order.request),
    )
    closed = RequestOutput("id", "finished", queue_seconds=0.25, denoise_seconds=1.5, batch_peers=0.5)
    told = {"request_id": "one", "queue_ms": 250.0, "denoise_ms": 1500.0, "batch_peers": 0.5}
    assert response_parameters(RequestHandle(order, job, "pro", 0.0), closed) == told
    assert response_parameters(RequestHandle(order, job, "free", 0.0), closed) == {**told, "degraded_to": "free"}
