"""Jobs: ask now, fetch later. An accepted one survives the server."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from litestar import Response, delete, get, post
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.images.formats import Format
from stillhouse.serve.api.events import KEEP_ALIVE, SILENCE, event
from stillhouse.serve.api.http import Asked, Missing, caller_of, mask_of, picture_of, service_of
from stillhouse.serve.api.seeds import new_seed
from stillhouse.serve.client import Caller
from stillhouse.serve.request_handle import Progress
from stillhouse.serve.store.job_store import BY_ADDRESS, Record
from stillhouse.serve.worker.messages import Closed

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "raw": "application/octet-stream"}


class NewJob(msgspec.Struct, forbid_unknown_fields=True):
    """A picture to be drawn when there is room; `image` and `mask` are files in base64."""

    prompt: str
    model: str | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    image: str | None = None
    mask: str | None = None
    format: Literal["png", "jpeg", "webp"] = "png"


@post("/v1/jobs", status_code=202, tags=["Jobs"], summary="Ask for a picture that may come later")
async def submit(
    request: Asked,
    data: JSONBody[NewJob],
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=200)] = None,
) -> Response[Any]:
    """Accept a job. With the same Idempotency-Key, the same job is told again."""
    caller = await caller_of(request)
    image = None if data.image is None else await picture_of(request, await _bytes(data.image, "image"))
    mask = None if data.mask is None else await mask_of(request, await _bytes(data.mask, "mask"))
    asked = ImageRequest(
        data.prompt,
        negative_prompt=data.negative_prompt,
        seed=new_seed() if data.seed is None else data.seed,
        steps=data.steps,
        guidance=data.guidance,
        sampler=data.sampler,
        width=data.width,
        height=data.height,
        image=image,
        mask=mask,
        strength=data.strength,
    )
    name = _name(caller, idempotency_key)
    kind: Format = data.format
    record = await service_of(request).patient.submit(name, caller, data.model or caller.tier, asked, kind)
    return Response(_told(request, record), headers={"location": f"/v1/jobs/{record.id}", "x-request-id": record.id})


@get("/v1/jobs", tags=["Jobs"], summary="The latest jobs of this key")
async def listing(
    request: Asked,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    before: Annotated[float | None, QueryParameter()] = None,
) -> dict[str, Any]:
    """The latest first; `before` is a `created` of the last page."""
    caller = await caller_of(request)
    patient = service_of(request).patient
    key = None if caller.is_admin else caller.key
    records = await patient.ask(patient.store.list, key, limit, before)
    return {"object": "list", "data": [_told(request, record) for record in records]}


@get("/v1/jobs/{name:str}", tags=["Jobs"], summary="How a job stands")
async def show(request: Asked, name: FromPath[str]) -> dict[str, Any]:
    """One job."""
    return _told(request, await _own(request, name))


@get("/v1/jobs/{name:str}/events", tags=["Jobs"], summary="Watch a job", media_type="text/event-stream")
async def watch(request: Asked, name: FromPath[str]) -> Stream:
    """Server-sent events: `progress`, and last `end`."""
    await _own(request, name)
    return Stream(_happening(request, name), media_type="text/event-stream", headers={"cache-control": "no-store"})


@get("/v1/jobs/{name:str}/picture", tags=["Jobs"], summary="The picture of a job", media_type="image/png")
async def picture(request: Asked, name: FromPath[str]) -> Response[bytes]:
    """The picture, once there is one."""
    return await _picture(request, await _own(request, name))


@get(
    "/v1/pictures/{name:str}", tags=["OpenAI"], summary="A picture that was asked for as a URL", media_type="image/png"
)
async def pictures(request: Asked, name: FromPath[str]) -> Response[bytes]:
    """The picture; whoever has its address may see it."""
    record = await _found(request, name)
    if not record.told.get(BY_ADDRESS):
        raise _no_job(name)
    return await _picture(request, record)


@delete("/v1/jobs/{name:str}", status_code=200, tags=["Jobs"], summary="Cancel a job")
async def cancel(request: Asked, name: FromPath[str]) -> dict[str, Any]:
    """Draw it no further. One that has ended stays as it is."""
    await _own(request, name)
    patient = service_of(request).patient
    await patient.cancel(name)
    record = await patient.ask(patient.store.get, name)
    assert record is not None
    return _told(request, record)


async def _found(request: Asked, name: str) -> Record:
    patient = service_of(request).patient
    record = await patient.ask(patient.store.get, name)
    if record is None:
        raise _no_job(name)
    return record


async def _own(request: Asked, name: str) -> Record:
    caller = await caller_of(request)
    record = await _found(request, name)
    if record.key != caller.key and not caller.is_admin:
        raise _no_job(name)
    return record


def _no_job(name: str) -> Missing:
    """There is no job of that id, or it is somebody else's, who need not be told which."""
    return Missing(f"there is no job {name!r}", fix="it may have been deleted since")


async def _picture(request: Asked, record: Record) -> Response[bytes]:
    patient = service_of(request).patient
    if record.state != "drawn":
        told = f"job {record.id} is {record.state} and has no picture"
        raise Missing(told, allowed="a job that is drawn", status=409)
    try:
        content = await asyncio.to_thread(patient.store.picture(record).read_bytes)
    except FileNotFoundError:
        raise _no_job(record.id) from None
    headers = {"x-seed": str(record.told.get("seed", "")), "cache-control": "private, max-age=31536000, immutable"}
    return Response(content, media_type=MEDIA[record.format], headers=headers)


async def _happening(request: Asked, name: str) -> AsyncIterator[bytes]:
    patient = service_of(request).patient
    while True:
        if ticket := patient.tickets.get(name):
            async with aclosing(ticket.events()) as happening:  # type: ignore[type-var]
                async for one in happening:
                    if isinstance(one, Progress):
                        yield event("progress", json.dumps({"index": one.index, "evaluations": one.evaluations}))
                    elif isinstance(one, Closed):
                        break
        record = await patient.ask(patient.store.get, name)
        if record is None or record.state != "queued":
            yield event("end", json.dumps(_told(request, record) if record else {"id": name, "state": "deleted"}))
            return
        yield KEEP_ALIVE
        await patient.changed(SILENCE)


def _told(request: Asked, record: Record) -> dict[str, Any]:
    ticket = service_of(request).patient.tickets.get(record.id)
    told = {
        "id": record.id,
        "object": "job",
        "model": record.tier,
        "state": "running" if record.state == "queued" and ticket and ticket.job.index else record.state,
        "created": record.created,
        "ended": record.ended,
        "error": record.error or None,
        "request": record.request,
        "format": record.format,
        "result": record.told or None,
    }
    if ticket and not ticket.closed:
        told["progress"] = ticket.job.index / len(ticket.job.walk.rows)
    if record.state == "drawn":
        told["picture"] = f"/v1/jobs/{record.id}/picture"
    return told


def _name(caller: Caller, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return uuid4().hex
    return sha256(f"{caller.key}\n{idempotency_key}".encode()).hexdigest()[:32]


async def _bytes(text: str, name: str) -> bytes:
    try:
        return await asyncio.to_thread(base64.b64decode, text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name} is not base64", allowed="a file in base64") from None
