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
from stillhouse.serve.api.events import KEEP_ALIVE, KEEP_ALIVE_SECONDS, format_event
from stillhouse.serve.api.http import ApiRequest, NotFound, authenticate_request, decode_image, decode_mask, get_service
from stillhouse.serve.api.seeds import random_seed
from stillhouse.serve.client import Client
from stillhouse.serve.request_handle import Progress
from stillhouse.serve.store.job_store import HAS_PUBLIC_URL, JobRecord
from stillhouse.serve.worker.messages import RequestOutput

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "raw": "application/octet-stream"}


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
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
async def create_job(
    request: ApiRequest,
    data: JSONBody[JobRequest],
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=200)] = None,
) -> Response[Any]:
    """Accept a job. With the same Idempotency-Key, the same job is told again."""
    caller = await authenticate_request(request)
    image = None if data.image is None else await decode_image(request, await _decode_base64(data.image, "image"))
    mask = None if data.mask is None else await decode_mask(request, await _decode_base64(data.mask, "mask"))
    asked = ImageRequest(
        data.prompt,
        negative_prompt=data.negative_prompt,
        seed=random_seed() if data.seed is None else data.seed,
        steps=data.steps,
        guidance=data.guidance,
        sampler=data.sampler,
        width=data.width,
        height=data.height,
        image=image,
        mask=mask,
        strength=data.strength,
    )
    name = _job_id(caller, idempotency_key)
    kind: Format = data.format
    record = await get_service(request).job_queue.submit(name, caller, data.model or caller.tier, asked, kind)
    return Response(
        _job_body(request, record), headers={"location": f"/v1/jobs/{record.id}", "x-request-id": record.id}
    )


@get("/v1/jobs", tags=["Jobs"], summary="The latest jobs of this key")
async def list_jobs(
    request: ApiRequest,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    before: Annotated[float | None, QueryParameter()] = None,
) -> dict[str, Any]:
    """The latest first; `before` is a `created` of the last page."""
    caller = await authenticate_request(request)
    patient = get_service(request).job_queue
    key = None if caller.is_admin else caller.key
    records = await patient.run_in_store(patient.store.list, key, limit, before)
    return {"object": "list", "data": [_job_body(request, record) for record in records]}


@get("/v1/jobs/{name:str}", tags=["Jobs"], summary="How a job stands")
async def get_job(request: ApiRequest, name: FromPath[str]) -> dict[str, Any]:
    """One job."""
    return _job_body(request, await _find_own_record(request, name))


@get("/v1/jobs/{name:str}/events", tags=["Jobs"], summary="Watch a job", media_type="text/event-stream")
async def stream_job(request: ApiRequest, name: FromPath[str]) -> Stream:
    """Server-sent events: `progress`, and last `end`."""
    await _find_own_record(request, name)
    return Stream(_stream_events(request, name), media_type="text/event-stream", headers={"cache-control": "no-store"})


@get("/v1/jobs/{name:str}/picture", tags=["Jobs"], summary="The picture of a job", media_type="image/png")
async def get_job_image(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """The picture, once there is one."""
    return await _image_response(request, await _find_own_record(request, name))


@get(
    "/v1/pictures/{name:str}", tags=["OpenAI"], summary="A picture that was asked for as a URL", media_type="image/png"
)
async def get_image(request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
    """The picture; whoever has its address may see it."""
    record = await _find_record(request, name)
    if not record.result.get(HAS_PUBLIC_URL):
        raise _job_not_found(name)
    return await _image_response(request, record)


@delete("/v1/jobs/{name:str}", status_code=200, tags=["Jobs"], summary="Cancel a job")
async def cancel_job(request: ApiRequest, name: FromPath[str]) -> dict[str, Any]:
    """Draw it no further. One that has ended stays as it is."""
    await _find_own_record(request, name)
    patient = get_service(request).job_queue
    await patient.cancel(name)
    record = await patient.run_in_store(patient.store.get, name)
    assert record is not None
    return _job_body(request, record)


async def _find_record(request: ApiRequest, name: str) -> JobRecord:
    patient = get_service(request).job_queue
    record = await patient.run_in_store(patient.store.get, name)
    if record is None:
        raise _job_not_found(name)
    return record


async def _find_own_record(request: ApiRequest, name: str) -> JobRecord:
    caller = await authenticate_request(request)
    record = await _find_record(request, name)
    if record.key != caller.key and not caller.is_admin:
        raise _job_not_found(name)
    return record


def _job_not_found(name: str) -> NotFound:
    """There is no job of that id, or it is somebody else's, who need not be told which."""
    return NotFound(f"there is no job {name!r}", fix="it may have been deleted since")


async def _image_response(request: ApiRequest, record: JobRecord) -> Response[bytes]:
    patient = get_service(request).job_queue
    if record.state != "drawn":
        told = f"job {record.id} is {record.state} and has no picture"
        raise NotFound(told, allowed="a job that is drawn", status=409)
    try:
        content = await asyncio.to_thread(patient.store.image_path(record).read_bytes)
    except FileNotFoundError:
        raise _job_not_found(record.id) from None
    headers = {"x-seed": str(record.result.get("seed", "")), "cache-control": "private, max-age=31536000, immutable"}
    return Response(content, media_type=MEDIA_TYPES[record.format], headers=headers)


async def _stream_events(request: ApiRequest, name: str) -> AsyncIterator[bytes]:
    patient = get_service(request).job_queue
    while True:
        if ticket := patient.handles.get(name):
            async with aclosing(ticket.stream()) as happening:  # type: ignore[type-var]
                async for one in happening:
                    if isinstance(one, Progress):
                        yield format_event("progress", json.dumps({"index": one.index, "evaluations": one.evaluations}))
                    elif isinstance(one, RequestOutput):
                        break
        record = await patient.run_in_store(patient.store.get, name)
        if record is None or record.state != "queued":
            yield format_event(
                "end", json.dumps(_job_body(request, record) if record else {"id": name, "state": "deleted"})
            )
            return
        yield KEEP_ALIVE
        await patient.wait_for_change(KEEP_ALIVE_SECONDS)


def _job_body(request: ApiRequest, record: JobRecord) -> dict[str, Any]:
    ticket = get_service(request).job_queue.handles.get(record.id)
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
        "result": record.result or None,
    }
    if ticket and not ticket.output:
        told["progress"] = ticket.job.index / len(ticket.job.step_plan.rows)
    if record.state == "drawn":
        told["picture"] = f"/v1/jobs/{record.id}/picture"
    return told


def _job_id(client: Client, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return uuid4().hex
    return sha256(f"{client.key}\n{idempotency_key}".encode()).hexdigest()[:32]


async def _decode_base64(text: str, name: str) -> bytes:
    try:
        return await asyncio.to_thread(base64.b64decode, text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name} is not base64", allowed="a file in base64") from None
