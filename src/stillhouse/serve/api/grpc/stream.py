"""Streaming inference: the client sends a stream of requests, the server a stream of previews and images.

The stream is as Triton's clients expect it. Responses carry the request id, because responses to several requests
may interleave. The parameter `triton_final_response` marks the last response of a request. An error is sent as a
response and does not end the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from stillhouse.serve.api.grpc.call import Context, authenticate_call, get_traceparent, to_rpc_error
from stillhouse.serve.api.grpc.conversion import (
    make_infer_response,
    unpack_inputs,
    unpack_output_names,
    unpack_parameters,
)
from stillhouse.serve.api.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from stillhouse.serve.api.http import handle_disconnect, raise_for_failure
from stillhouse.serve.api.kserve.protocol import check_model, make_generation_request, response_parameters
from stillhouse.serve.api.kserve.tensors import image_tensors, preview_tensors, select_outputs
from stillhouse.serve.client import Client
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.service import Service

WriteResponse: TypeAlias = Callable[[ModelStreamInferResponse], Awaitable[None]]

MAX_CONCURRENT = 64
"""Largest number of unfinished requests of one stream. Further requests are read later, so that memory is bounded."""
_FINAL_RESPONSE = "triton_final_response"


@dataclass(frozen=True, slots=True)
class StreamServicer:
    """Implementation of ModelStreamInfer, the streaming method of KServe's gRPC inference service."""

    service: Service

    async def infer(self, requests: AsyncIterator[ModelInferRequest], context: Context) -> None:
        """Answer all requests of a stream concurrently; responses are written to the context.

        If the client cancels the stream, the setting `on_disconnect` decides whether unfinished images are cancelled,
        or finished and stored as jobs.
        """
        client, traceparent = await authenticate_call(self.service, context), get_traceparent(context)
        slots, write_lock = asyncio.Semaphore(MAX_CONCURRENT), asyncio.Lock()

        async def write(answer: ModelStreamInferResponse) -> None:
            async with write_lock:
                await context.write(answer)

        async def answer(request: ModelInferRequest) -> None:
            try:
                await self._respond(request, client, traceparent, write)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await slots.acquire()
                tasks.create_task(answer(request))

    async def _respond(
        self, request: ModelInferRequest, client: Client, traceparent: str | None, write: WriteResponse
    ) -> None:
        try:
            await self._generate(request, client, traceparent, write)
        except Exception as error:
            response = ModelInferResponse(id=request.id, model_name=request.model_name)
            response.parameters[_FINAL_RESPONSE].bool_param = True
            await write(ModelStreamInferResponse(error_message=to_rpc_error(error).message, infer_response=response))

    async def _generate(
        self, request: ModelInferRequest, client: Client, traceparent: str | None, write: WriteResponse
    ) -> None:
        check_model(self.service.settings.tiers, request.model_name, request.model_version, client)
        output_names = unpack_output_names(request)
        generation_request = make_generation_request(
            unpack_inputs(request),
            unpack_parameters(request),
            request.model_name,
            client,
            is_stream=True,
            traceparent=traceparent,
        )
        handle, is_answered = self.service.dispatcher.submit(generation_request), False
        try:
            async with aclosing(handle.stream()) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, PreviewImage):
                        answer = make_infer_response(request, preview_tensors(event), {_FINAL_RESPONSE: False})
                        await write(ModelStreamInferResponse(infer_response=answer))
                    elif isinstance(event, RequestOutput):
                        await write(_final_response(request, output_names, handle, event))
                        is_answered = True
        finally:
            if not is_answered:
                handle_disconnect(self.service, [handle])


def _final_response(
    request: ModelInferRequest, output_names: Sequence[str], handle: RequestHandle, output: RequestOutput
) -> ModelStreamInferResponse:
    raise_for_failure(output, handle)
    outputs = select_outputs(image_tensors(handle.request, output.content), output_names)
    parameters = response_parameters(handle, output)
    return ModelStreamInferResponse(
        infer_response=make_infer_response(request, outputs, {**parameters, _FINAL_RESPONSE: True})
    )
