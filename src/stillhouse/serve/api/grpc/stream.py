"""A stream of requests, and of what each of them is answered: previews, and then the picture.

As Triton's clients expect it: answers of different requests may be mixed, and carry the id of theirs; the last one of
each says so by the parameter `triton_final_response`; an error is an answer, too, and does not end the stream.
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
from stillhouse.serve.request_handle import PreviewImage, RequestHandle
from stillhouse.serve.service import Service
from stillhouse.serve.worker.messages import RequestOutput

WriteResponse: TypeAlias = Callable[[ModelStreamInferResponse], Awaitable[None]]

MAX_CONCURRENT = 64
"""Requests of one stream that are not answered yet; the next is read when one of them is. So a client that does not
read its answers does not fill the memory with them."""
_FINAL_RESPONSE = "triton_final_response"


@dataclass(frozen=True, slots=True)
class StreamServicer:
    """Answers streams for a service."""

    service: Service

    async def infer(self, requests: AsyncIterator[ModelInferRequest], context: Context) -> None:
        """Answer all of them, several at once. When the stream is cancelled, so are its pictures."""
        caller, trace = await authenticate_call(self.service, context), get_traceparent(context)
        room, turn = asyncio.Semaphore(MAX_CONCURRENT), asyncio.Lock()

        async def write(answer: ModelStreamInferResponse) -> None:
            async with turn:
                await context.write(answer)

        async def answer(request: ModelInferRequest) -> None:
            try:
                await self._respond(request, caller, trace, write)
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await room.acquire()
                tasks.create_task(answer(request))

    async def _respond(
        self, request: ModelInferRequest, client: Client, traceparent: str | None, write: WriteResponse
    ) -> None:
        try:
            await self._generate(request, client, traceparent, write)
        except Exception as error:
            told = ModelInferResponse(id=request.id, model_name=request.model_name)
            told.parameters[_FINAL_RESPONSE].bool_param = True
            await write(ModelStreamInferResponse(error_message=to_rpc_error(error).message, infer_response=told))

    async def _generate(
        self, request: ModelInferRequest, client: Client, traceparent: str | None, write: WriteResponse
    ) -> None:
        check_model(self.service.settings.tiers, request.model_name, request.model_version, client)
        wanted = unpack_output_names(request)
        told = unpack_parameters(request)
        order = make_generation_request(
            unpack_inputs(request), told, request.model_name, client, is_stream=True, traceparent=traceparent
        )
        ticket, is_answered = self.service.dispatcher.submit(order), False
        try:
            async with aclosing(ticket.stream()) as happening:  # type: ignore[type-var]
                async for one in happening:
                    if isinstance(one, PreviewImage):
                        answer = make_infer_response(request, preview_tensors(one), {_FINAL_RESPONSE: False})
                        await write(ModelStreamInferResponse(infer_response=answer))
                    elif isinstance(one, RequestOutput):
                        await write(_final_response(request, wanted, ticket, one))
                        is_answered = True
        finally:
            if not is_answered:
                handle_disconnect(self.service, [ticket])


def _final_response(
    request: ModelInferRequest, output_names: Sequence[str], handle: RequestHandle, output: RequestOutput
) -> ModelStreamInferResponse:
    raise_for_failure(output, handle)
    outputs = select_outputs(image_tensors(handle.request, output.content), output_names)
    facts = response_parameters(handle, output)
    return ModelStreamInferResponse(
        infer_response=make_infer_response(request, outputs, {**facts, _FINAL_RESPONSE: True})
    )
