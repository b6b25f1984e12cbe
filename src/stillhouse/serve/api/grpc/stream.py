"""A stream of requests, and of what each of them is answered: previews, and then the picture.

As Triton's clients expect it: answers of different requests may be mixed, and carry the id of theirs; the last one of
each says so by the parameter `triton_final_response`; an error is an answer, too, and does not end the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from stillhouse.serve.api.grpc.call import Context, caller_of, problem_of, trace_of
from stillhouse.serve.api.grpc.conversion import answer_of, inputs_of, outputs_of, parameters_of
from stillhouse.serve.api.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from stillhouse.serve.api.http import leave, raise_for
from stillhouse.serve.api.kserve.protocol import check_model, facts_of, order_of
from stillhouse.serve.api.kserve.tensors import chosen, picture_of, preview_of
from stillhouse.serve.client import Caller
from stillhouse.serve.request_handle import Shown, Ticket
from stillhouse.serve.service import Service
from stillhouse.serve.worker.messages import Closed

Write: TypeAlias = Callable[[ModelStreamInferResponse], Awaitable[None]]

MOST_AT_ONCE = 64
"""Requests of one stream that are not answered yet; the next is read when one of them is. So a client that does not
read its answers does not fill the memory with them."""
_LAST = "triton_final_response"


@dataclass(frozen=True, slots=True)
class Streaming:
    """Answers streams for a service."""

    service: Service

    async def infer(self, requests: AsyncIterator[ModelInferRequest], context: Context) -> None:
        """Answer all of them, several at once. When the stream is cancelled, so are its pictures."""
        caller, trace = await caller_of(self.service, context), trace_of(context)
        room, turn = asyncio.Semaphore(MOST_AT_ONCE), asyncio.Lock()

        async def write(answer: ModelStreamInferResponse) -> None:
            async with turn:
                await context.write(answer)

        async def answer(request: ModelInferRequest) -> None:
            try:
                await self._answer(request, caller, trace, write)
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await room.acquire()
                tasks.create_task(answer(request))

    async def _answer(self, request: ModelInferRequest, caller: Caller, trace: str | None, write: Write) -> None:
        try:
            await self._draw(request, caller, trace, write)
        except Exception as error:
            told = ModelInferResponse(id=request.id, model_name=request.model_name)
            told.parameters[_LAST].bool_param = True
            await write(ModelStreamInferResponse(error_message=problem_of(error).message, infer_response=told))

    async def _draw(self, request: ModelInferRequest, caller: Caller, trace: str | None, write: Write) -> None:
        check_model(self.service.settings.tiers, request.model_name, request.model_version, caller)
        wanted = outputs_of(request)
        told = parameters_of(request)
        order = order_of(inputs_of(request), told, request.model_name, caller, is_stream=True, trace=trace)
        ticket, is_answered = self.service.front.place(order), False
        try:
            async with aclosing(ticket.events()) as happening:  # type: ignore[type-var]
                async for one in happening:
                    if isinstance(one, Shown):
                        answer = answer_of(request, preview_of(one), {_LAST: False})
                        await write(ModelStreamInferResponse(infer_response=answer))
                    elif isinstance(one, Closed):
                        await write(_last(request, wanted, ticket, one))
                        is_answered = True
        finally:
            if not is_answered:
                leave(self.service, [ticket])


def _last(
    request: ModelInferRequest, wanted: Sequence[str], ticket: Ticket, closed: Closed
) -> ModelStreamInferResponse:
    raise_for(closed, ticket)
    outputs = chosen(picture_of(ticket.request, closed.content), wanted)
    facts = facts_of(ticket, closed)
    return ModelStreamInferResponse(infer_response=answer_of(request, outputs, {**facts, _LAST: True}))
