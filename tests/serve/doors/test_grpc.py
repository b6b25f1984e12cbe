"""KServe's protocol over gRPC, by Triton's own client: one answer, or previews and then the picture."""

import asyncio
import queue
import signal
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from stillhouse import __version__
from stillhouse.models.load import load
from stillhouse.models.pipeline import Pipeline
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.keys import add_key
from tests.serve.running import PATIENCE, Running, running, wait_until

PROMPT = "a small red circle left of a big blue square"
LONG = {"SEED": 7, "STEPS": 150}
"""A picture that takes a while."""
KINDS: dict[str, tuple[str, Any]] = {
    "PROMPT": ("BYTES", np.object_),
    "NEGATIVE_PROMPT": ("BYTES", np.object_),
    "SEED": ("INT64", np.int64),
    "STEPS": ("INT32", np.int32),
    "GUIDANCE": ("FP32", np.float32),
}
GUARDED = """
keys = true
[tiers.free]
pipeline = "shapes"
steps = 3
lateness = 1000
[tiers.pro]
pipeline = "shapes"
lateness = 1000
"""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    assert server.grpc
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def inputs(**values: Any) -> list[triton.InferInput]:
    tensors = []
    for name, value in {"PROMPT": PROMPT, **values}.items():
        datatype, dtype = KINDS[name]
        tensor = triton.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype))
        tensors.append(tensor)
    return tensors


def message(model: str = "free", **contents: Any) -> Any:
    """A request whose elements stand in fields of their own, as programs write it that know the protocol only."""
    fields = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
    request = pb.ModelInferRequest(model_name=model)
    for name, value in {"PROMPT": PROMPT.encode(), **contents}.items():
        datatype = KINDS[name][0]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        getattr(tensor.contents, fields[datatype]).append(value)
    return request


def refusal(client: triton.InferenceServerClient, model: str = "free", **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, **{"inputs": inputs(), **options})
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def cancelled(server: Running) -> float:
    """How many pictures were cancelled because their client had gone."""
    lines = server.get("/metrics")[1].decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if 'cancelled_total{reason="disconnect"}' in line)


def is_idle(server: Running) -> bool:
    return b'"pictures":[]' in server.get("/v1/state")[1].replace(b" ", b"")


def facts(result: triton.InferResult) -> dict[str, Any]:
    """The parameters of an answer."""
    told = result.get_response().parameters
    return {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in told.items()}


def test_it_is_live_and_ready_and_so_is_each_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("free") and client.is_model_ready("pro", "1")
    assert not client.is_model_ready("other") and not client.is_model_ready("free", "2")


def test_metadata_are_those_of_http(client: triton.InferenceServerClient) -> None:
    told = client.get_server_metadata(as_json=True)
    assert told == {"name": "stillhouse", "version": __version__, "extensions": ["binary_tensor_data"]}
    model = client.get_model_metadata("free")
    assert (model.name, list(model.versions), model.platform) == ("free", ["1"], "stillhouse")
    kinds = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.inputs}
    assert kinds == {name: (datatype, [1]) for name, (datatype, _) in KINDS.items()}
    outputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.outputs}
    assert outputs == {"IMAGE": ("UINT8", [-1, -1, 3]), "SEED": ("INT64", [1])}
    index = client.get_model_repository_index()
    assert [(one.name, one.version, one.state) for one in index.models] == [
        ("free", "1", "READY"),
        ("pro", "1", "READY"),
    ]


def test_a_seed_gives_the_pixels_of_generate(client: triton.InferenceServerClient, pipeline: Pipeline) -> None:
    result = client.infer("free", inputs(SEED=7), request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("IMAGE"), pipeline.generate(PROMPT, seed=7, steps=3).image)
    assert result.as_numpy("SEED").tolist() == [7] and result.as_numpy("IMAGE").dtype == np.uint8
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("free", "1", "seven")
    assert facts(result)["denoise_ms"] > 0


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_input_means_what_it_means_to_generate(
    client: triton.InferenceServerClient, stub: Any, pipeline: Pipeline, compression: str | None
) -> None:
    given = {"SEED": 3, "STEPS": 4, "GUIDANCE": 7.3}
    packed = client.infer("pro", inputs(**given, NEGATIVE_PROMPT="red"), compression_algorithm=compression)
    alone = pipeline.generate(PROMPT, seed=3, steps=4, guidance=7.3, negative_prompt="red")
    np.testing.assert_array_equal(packed.as_numpy("IMAGE"), alone.image)
    answer = triton.InferResult(stub.ModelInfer(message("pro", **given, NEGATIVE_PROMPT=b"red")))
    np.testing.assert_array_equal(answer.as_numpy("IMAGE"), alone.image)


def test_only_what_is_wanted_is_sent_in_that_order(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in ("SEED", "IMAGE")]
    result = client.infer("free", inputs(), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["SEED", "IMAGE"]
    assert client.infer("free", inputs(), outputs=wanted[:1]).as_numpy("IMAGE") is None


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({"model": "other"}, "NOT_FOUND", "there is no model 'other'; allowed: free, pro"),
        ({"model_version": "2"}, "NOT_FOUND", "model 'free' has no version '2'; allowed: 1"),
        ({"inputs": inputs(STEPS=0)}, "INVALID_ARGUMENT", "steps is 0"),
        ({"inputs": inputs(GUIDANCE=float("inf"))}, "INVALID_ARGUMENT", "guidance is inf"),
        ({"inputs": inputs()[:0]}, "INVALID_ARGUMENT", "without a prompt"),
        ({"outputs": [triton.InferRequestedOutput("STEP")]}, "INVALID_ARGUMENT", "there is no output 'STEP'"),
        ({"parameters": {"previews": 2}}, "INVALID_ARGUMENT", "allowed: previews with ModelStreamInfer"),
        ({"priority": 1}, "INVALID_ARGUMENT", "priority is 1"),
        ({"sequence_id": 5}, "INVALID_ARGUMENT", "a sequence of requests"),
        ({"timeout": 1}, "DEADLINE_EXCEEDED", "its time was over before it could be begun"),
        ({"inputs": inputs(PROMPT="a" * (5 << 20))}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_a_refusal_says_what_is_allowed(
    client: triton.InferenceServerClient, options: dict[str, Any], status: str, told: str
) -> None:
    given, reason = refusal(client, **options)
    assert given == status and told in reason


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
    ("broken", "told"),
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
def test_a_message_that_does_not_fit_is_refused(stub: Any, broken: Any, told: str) -> None:
    request = message(SEED=7)
    broken(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and told in str(caught.value.details())


def test_a_method_that_is_not_there_says_so(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_model_config("free")


def streamed(client: triton.InferenceServerClient, count: int, *requests: dict[str, Any]) -> list[Any]:
    """So many answers, or errors, of one stream."""
    heard: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: heard.put(result or error))
    try:
        for request in requests:
            client.async_stream_infer(**{"model_name": "pro", **request})
        return [heard.get(timeout=PATIENCE) for _ in range(count)]
    finally:
        client.stop_stream()


def test_a_stream_shows_a_picture_on_the_way_and_then_itself(
    client: triton.InferenceServerClient, pipeline: Pipeline
) -> None:
    asked = {"inputs": inputs(SEED=7, STEPS=40), "request_id": "seven", "parameters": {"previews": 3}}
    *previews, last = streamed(client, 4, asked)
    for preview in previews:
        file = Image.open(BytesIO(preview.as_numpy("PREVIEW")[0]))
        assert (file.format, file.size) == ("WEBP", (64, 64))
        assert facts(preview) == {"triton_final_response": False} and preview.get_response().id == "seven"
    assert [preview.as_numpy("STEP").tolist() for preview in previews] == [[10], [20], [30]]
    np.testing.assert_array_equal(last.as_numpy("IMAGE"), pipeline.generate(PROMPT, seed=7, steps=40).image)
    assert last.as_numpy("SEED").tolist() == [7] and last.get_response().id == "seven"
    assert facts(last)["triton_final_response"] is True


def test_a_stream_answers_many_and_an_error_is_an_answer(client: triton.InferenceServerClient) -> None:
    good: list[dict[str, Any]] = [
        {"inputs": inputs(SEED=seed), "request_id": str(seed), "model_name": "free"} for seed in range(8)
    ]
    bad: list[dict[str, Any]] = [{"inputs": inputs(STEPS=0)}, {"inputs": inputs(), "model_name": "other"}]
    answers = streamed(client, 11, *bad, *good, {**good[0], "enable_empty_final_response": True})
    errors = [str(one) for one in answers if isinstance(one, InferenceServerException)]
    assert len(errors) == 2 and any("steps is 0" in one for one in errors) and any("'other'" in one for one in errors)
    drawn = [one for one in answers if not isinstance(one, InferenceServerException)]
    seeds = [(one.get_response().id, str(one.as_numpy("SEED")[0])) for one in drawn]
    assert sorted(seeds) == sorted([("0", "0"), *((str(seed), str(seed)) for seed in range(8))])
    assert all(facts(one)["triton_final_response"] for one in drawn)


def test_an_error_in_a_stream_names_the_request(stub: Any) -> None:
    request = message("other")
    request.id = "one"
    [answer] = stub.ModelStreamInfer(iter([request]))
    assert answer.error_message.startswith("there is no model 'other'") and answer.infer_response.id == "one"
    assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_more_than_is_answered_at_once_is_answered_in_the_end(stub: Any) -> None:
    answers = list(stub.ModelStreamInfer(iter([message("other")] * 500)))
    assert len(answers) == 500 and all(answer.error_message for answer in answers)


def test_its_client_for_asyncio_sees_the_same(server: Running, pipeline: Pipeline) -> None:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "pro", "inputs": inputs(SEED=7, STEPS=40), "parameters": {"previews": 2}}

    async def answers() -> list[tuple[list[str], NDArray[np.uint8] | None]]:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            told = []
            async for result, error in client.stream_infer(asked()):
                assert error is None
                told.append(([one.name for one in result.get_response().outputs], result.as_numpy("IMAGE")))
            return told

    *previews, last = asyncio.run(answers())
    assert [names for names, _ in previews] == [["PREVIEW", "STEP"]] * 2
    assert last[0] == ["IMAGE", "SEED"]
    assert last[1] is not None
    np.testing.assert_array_equal(last[1], pipeline.generate(PROMPT, seed=7, steps=40).image)


def test_a_stream_that_is_cancelled_cancels_its_pictures(server: Running) -> None:
    before = cancelled(server)

    async def asked() -> AsyncIterator[dict[str, Any]]:
        for _ in range(3):
            yield {"model_name": "pro", "inputs": inputs(**LONG), "parameters": {"previews": 10}}
        await asyncio.sleep(PATIENCE)

    async def first_preview() -> None:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            stream = client.stream_infer(asked())
            result, _ = await stream.__anext__()
            assert result.as_numpy("STEP").tolist() == [13]
            stream.cancel()

    asyncio.run(first_preview())
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 3


def test_a_call_that_is_cancelled_cancels_its_picture(server: Running, stub: Any) -> None:
    before = cancelled(server)
    call = stub.ModelInfer.future(message("pro", **LONG))
    wait_until(lambda: not is_idle(server))
    assert call.cancel()
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 1


def test_a_call_whose_time_is_over_cancels_its_picture(server: Running, client: triton.InferenceServerClient) -> None:
    before = cancelled(server)
    assert refusal(client, "pro", inputs=inputs(**LONG), client_timeout=0.2)[0] == "DEADLINE_EXCEEDED"
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 1


def test_grpcs_own_health_service_tells_the_same(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=name)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    unknown = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(unknown)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(unknown)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_reflection_alone_is_enough_to_draw(channel: grpc.Channel, pipeline: Pipeline) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    names = {"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(database.get_services()) == names
    pool = DescriptorPool(database)
    assert all(pool.FindServiceByName(name) for name in names)
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    request = GetMessageClass(method.input_type).FromString(message(SEED=7).SerializeToString())
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda given: given.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    image = np.frombuffer(call(request).raw_output_contents[0], np.uint8).reshape(64, 64, 3)
    np.testing.assert_array_equal(image, pipeline.generate(PROMPT, seed=7, steps=3).image)


def test_keys_quotas_and_the_end_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "stillhouse.toml").write_text(GUARDED, encoding="utf-8")
    connection = connect(tmp_path / "stillhouse-data")
    one_picture = 64 * 64 * 3
    free, pro = add_key(connection, "free", rate=1.0, burst=one_picture), add_key(connection, "pro")
    connection.close()
    with (
        running("--config", "stillhouse.toml", cwd=tmp_path) as server,
        grpc.insecure_channel(str(server.grpc)) as wire,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(wire)
        with triton.InferenceServerClient(server.grpc) as client:
            _check_keys(client, free, pro)
        _check_quota(stub, free)
        _check_draining(server, wire, stub, pro)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _check_keys(client: triton.InferenceServerClient, free: str, pro: str) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("free")
    for headers in ({}, _bearer("still-nobody-knows"), {"authorization": f"Basic {free}"}):
        assert refusal(client, headers=headers)[0] == "UNAUTHENTICATED"
    status, reason = refusal(client, "pro", headers=_bearer(free))
    assert status == "PERMISSION_DENIED" and "allowed: free" in reason
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        client.get_model_metadata("free")
    assert [one.name for one in client.get_model_repository_index(headers=_bearer(pro)).models] == ["pro"]
    [error] = streamed(client, 1, {"inputs": inputs()})
    assert "UNAUTHENTICATED" in str(error)


def _check_quota(stub: Any, key: str) -> None:
    metadata = list(_bearer(key).items())
    stub.ModelInfer(message(), metadata=metadata)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message(), metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers: dict[str, Any] = dict(list(caught.value.trailing_metadata() or ()))
    assert 1 < int(trailers["retry-after"]) <= 64 * 64 * 3 and "come back in" in str(caught.value.details())


def _check_draining(server: Running, wire: grpc.Channel, stub: Any, key: str) -> None:
    """What was begun is drawn to its end; nothing more is taken, and health says so before the door is closed."""
    metadata = list(_bearer(key).items())
    watch = health_pb2_grpc.HealthStub(wire).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    begun = stub.ModelInfer.future(message("pro", **LONG), metadata=metadata)
    wait_until(lambda: not is_idle(server))
    server.process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message("pro"), metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert begun.result().outputs[0].name == "IMAGE"
    watch.cancel()
    assert server.process.wait(PATIENCE) == 0
