"""A stream over gRPC, by Triton's own client: previews, and then the picture."""

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
