"""Streaming over gRPC with Triton's client: previews, then the image."""

import asyncio
import queue
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from stillhouse.pipelines.pipeline import Pipeline
from tests.serve.api.grpc.grpc_requests import LONG, PROMPT, cancelled, facts, inputs, is_idle, message
from tests.serve.running import PATIENCE, Running, wait_until


def streamed(client: triton.InferenceServerClient, count: int, *requests: dict[str, Any]) -> list[Any]:
    """Return `count` responses or errors of a stream."""
    heard: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: heard.put(result or error))
    try:
        for request in requests:
            client.async_stream_infer(**{"model_name": "pro", **request})
        return [heard.get(timeout=PATIENCE) for _ in range(count)]
    finally:
        client.stop_stream()


def test_stream_sends_previews_then_the_image(client: triton.InferenceServerClient, pipeline: Pipeline) -> None:
    fields = {"inputs": inputs(SEED=7, STEPS=40), "request_id": "seven", "parameters": {"previews": 3}}
    *previews, last = streamed(client, 4, fields)
    for preview in previews:
        file = Image.open(BytesIO(preview.as_numpy("PREVIEW")[0]))
        assert (file.format, file.size) == ("WEBP", (64, 64))
        assert facts(preview) == {"triton_final_response": False} and preview.get_response().id == "seven"
    assert [preview.as_numpy("STEP").tolist() for preview in previews] == [[10], [20], [30]]
    np.testing.assert_array_equal(last.as_numpy("IMAGE"), pipeline.generate(PROMPT, seed=7, steps=40).image)
    assert last.as_numpy("SEED").tolist() == [7] and last.get_response().id == "seven"
    assert facts(last)["triton_final_response"] is True


def test_stream_answers_all_requests_including_errors(client: triton.InferenceServerClient) -> None:
    good: list[dict[str, Any]] = [
        {"inputs": inputs(SEED=seed), "request_id": str(seed), "model_name": "free"} for seed in range(8)
    ]
    bad: list[dict[str, Any]] = [{"inputs": inputs(STEPS=0)}, {"inputs": inputs(), "model_name": "other"}]
    answers = streamed(client, 11, *bad, *good, {**good[0], "enable_empty_final_response": True})
    errors = [str(response) for response in answers if isinstance(response, InferenceServerException)]
    assert (
        len(errors) == 2
        and any("steps is 0" in response for response in errors)
        and any("'other'" in response for response in errors)
    )
    images = [response for response in answers if not isinstance(response, InferenceServerException)]
    seeds = [(response.get_response().id, str(response.as_numpy("SEED")[0])) for response in images]
    assert sorted(seeds) == sorted([("0", "0"), *((str(seed), str(seed)) for seed in range(8))])
    assert all(facts(response)["triton_final_response"] for response in images)


def test_stream_error_has_the_request_id(stub: Any) -> None:
    request = message("other")
    request.id = "one"
    [answer] = stub.ModelStreamInfer(iter([request]))
    assert answer.error_message.startswith("there is no model 'other'") and answer.infer_response.id == "one"
    assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_stream_with_more_than_max_concurrent_requests(stub: Any) -> None:
    answers = list(stub.ModelStreamInfer(iter([message("other")] * 500)))
    assert len(answers) == 500 and all(answer.error_message for answer in answers)


def test_asyncio_client(server: Running, pipeline: Pipeline) -> None:
    async def fields() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "pro", "inputs": inputs(SEED=7, STEPS=40), "parameters": {"previews": 2}}

    async def answers() -> list[tuple[list[str], NDArray[np.uint8] | None]]:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            message = []
            async for result, error in client.stream_infer(fields()):
                assert error is None
                message.append(
                    ([response.name for response in result.get_response().outputs], result.as_numpy("IMAGE"))
                )
            return message

    *previews, last = asyncio.run(answers())
    assert [names for names, _ in previews] == [["PREVIEW", "STEP"]] * 2
    assert last[0] == ["IMAGE", "SEED"]
    assert last[1] is not None
    np.testing.assert_array_equal(last[1], pipeline.generate(PROMPT, seed=7, steps=40).image)


def test_cancelled_stream_cancels_its_requests(server: Running) -> None:
    before = cancelled(server)

    async def fields() -> AsyncIterator[dict[str, Any]]:
        for _ in range(3):
            yield {"model_name": "pro", "inputs": inputs(**LONG), "parameters": {"previews": 10}}
        await asyncio.sleep(PATIENCE)

    async def first_preview() -> None:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            stream = client.stream_infer(fields())
            result, _ = await stream.__anext__()
            assert result.as_numpy("STEP").tolist() == [13]
            stream.cancel()

    asyncio.run(first_preview())
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 3
