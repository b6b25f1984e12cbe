"""Jobs API: asynchronous image generation that survives restarts of the server."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from litestar import Response, delete, get, post
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import Format
from stillhouse.serve.api.http import (
    KEEP_ALIVE,
    KEEP_ALIVE_SECONDS,
    ApiRequest,
    NotFound,
    authenticate_request,
    decode_image,
    decode_mask,
    get_service,
    make_event,
    random_seed,
    stream_response,
)
from stillhouse.serve.client import Client
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.request_handle import Progress
from stillhouse.serve.store.job_store import HAS_PUBLIC_URL, JobRecord

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "raw": "application/octet-stream"}


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An image to generate in the background. Fields that are left out take the defaults of the model.

    Args:
        prompt: text that describes the image.
        model: name of the model; if left out, the default model of the API key.
        negative_prompt: text that guidance leads away from.
        seed: seed of the noise; random if left out.
        steps: number of sampler steps.
        guidance: scale of classifier-free guidance.
        sampler: name of the sampler.
        width, height: size of the image in pixels.
        strength: share of the steps that an edit runs, above 0 and up to 1.
        image: file of the image to edit, in base64.
        mask: image file in base64 that marks what is repainted: its transparent pixels, or its bright pixels if the
            file has no transparency.
        format: file format of the image.
    """

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


@post("/v1/jobs", status_code=202, tags=["Jobs"], summary="Create a job")
async def create_job(
    request: ApiRequest,
    data: JSONBody[JobRequest],
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=200)] = None,
) -> Response[Any]:
    """Store a job, which generates an image in the background, and return the job.

    A request that repeats the Idempotency-Key of an earlier one returns the job of the earlier request.
    """
    client = await authenticate_request(request)
    image = None if data.image is None else await decode_image(request, await _decode_base64(data.image, "image"))
    mask = None if data.mask is None else await decode_mask(request, await _decode_base64(data.mask, "mask"))
    image_request = ImageRequest(
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
    job_id = _job_id(client, idempotency_key)
    image_format: Format = data.format
    record = await get_service(request).job_queue.submit(
        job_id, client, data.model or client.tier, image_request, image_format
    )
    return Response(
        _job_body(request, record), headers={"location": f"/v1/jobs/{record.id}", "x-request-id": record.id}
    )


@get("/v1/jobs", tags=["Jobs"], summary="List jobs")
async def list_jobs(
    request: ApiRequest,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    before: Annotated[float | None, QueryParameter()] = None,
) -> dict[str, Any]:
    """Return the latest jobs of the API key, newest first; for an admin key, the jobs of all keys.

    To get the next page, set `before` to the `created` time of the last job of this page.
    """
    client = await authenticate_request(request)
    job_queue = get_service(request).job_queue
    key = None if client.is_admin else client.key
    records = await job_queue.run_in_store(job_queue.store.list, key, limit, before)
    return {"object": "list", "data": [_job_body(request, record) for record in records]}


@get("/v1/jobs/{job_id:str}", tags=["Jobs"], summary="Get a job")
async def get_job(request: ApiRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """Return a job with its state, its request and, once it has ended, its result."""
    return _job_body(request, await _find_own_record(request, job_id))


@get("/v1/jobs/{job_id:str}/events", tags=["Jobs"], summary="Stream job events", media_type="text/event-stream")
async def stream_job(request: ApiRequest, job_id: FromPath[str]) -> ServerSentEvent:
    """Stream server-sent events: `progress` while the job runs, then `done` with the job."""
    await _find_own_record(request, job_id)
    return stream_response(_stream_events(request, job_id))


@get("/v1/jobs/{job_id:str}/image", tags=["Jobs"], summary="Download a job's image", media_type="image/png")
async def get_job_image(request: ApiRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Return the image file of a completed job."""
    return await _image_response(request, await _find_own_record(request, job_id))


@get("/v1/images/{job_id:str}", tags=["OpenAI"], summary="Download an image by URL", media_type="image/png")
async def get_image(request: ApiRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Return an image that was requested with `response_format: url`.

    No API key is required, because the random name in the URL is known only to the client.
    """
    record = await _find_record(request, job_id)
    if not record.result.get(HAS_PUBLIC_URL):
        raise _job_not_found(job_id)
    return await _image_response(request, record)


@delete("/v1/jobs/{job_id:str}", status_code=200, tags=["Jobs"], summary="Cancel a job")
async def cancel_job(request: ApiRequest, job_id: FromPath[str]) -> dict[str, Any]:
    """Cancel a job and return it in its new state. A job that has already ended is not changed."""
    await _find_own_record(request, job_id)
    job_queue = get_service(request).job_queue
    await job_queue.cancel(job_id)
    record = await job_queue.run_in_store(job_queue.store.get, job_id)
    assert record is not None
    return _job_body(request, record)


async def _find_record(request: ApiRequest, job_id: str) -> JobRecord:
    job_queue = get_service(request).job_queue
    record = await job_queue.run_in_store(job_queue.store.get, job_id)
    if record is None:
        raise _job_not_found(job_id)
    return record


async def _find_own_record(request: ApiRequest, job_id: str) -> JobRecord:
    client = await authenticate_request(request)
    record = await _find_record(request, job_id)
    if record.key != client.key and not client.is_admin:
        raise _job_not_found(job_id)
    return record


def _job_not_found(job_id: str) -> NotFound:
    """Return the error for an unknown job. A job of another key gives the same error, to hide that it exists."""
    return NotFound(f"there is no job {job_id!r}", fix="the job may have been deleted")


async def _image_response(request: ApiRequest, record: JobRecord) -> Response[bytes]:
    job_queue = get_service(request).job_queue
    if record.state != "completed":
        message = f"job {record.id} is {record.state} and has no image"
        raise NotFound(message, allowed="a completed job", status=409)
    try:
        content = await asyncio.to_thread(job_queue.store.image_path(record).read_bytes)
    except FileNotFoundError:
        raise _job_not_found(record.id) from None
    headers = {"x-seed": str(record.result.get("seed", "")), "cache-control": "private, max-age=31536000, immutable"}
    return Response(content, media_type=MEDIA_TYPES[record.format], headers=headers)


async def _stream_events(request: ApiRequest, job_id: str) -> AsyncIterator[ServerSentEventMessage]:
    job_queue = get_service(request).job_queue
    while True:
        if handle := job_queue.handles.get(job_id):
            async with aclosing(handle.stream()) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Progress):
                        yield make_event("progress", {"index": event.index, "evaluations": event.evaluations})
                    elif isinstance(event, RequestOutput):
                        break
        record = await job_queue.run_in_store(job_queue.store.get, job_id)
        if record is None or record.state != "queued":
            yield make_event("done", _job_body(request, record) if record else {"id": job_id, "state": "deleted"})
            return
        yield KEEP_ALIVE
        await job_queue.wait_for_change(KEEP_ALIVE_SECONDS)


def _job_body(request: ApiRequest, record: JobRecord) -> dict[str, Any]:
    handle = get_service(request).job_queue.handles.get(record.id)
    body = {
        "id": record.id,
        "object": "job",
        "model": record.tier,
        "state": "in_progress" if record.state == "queued" and handle and handle.job.index else record.state,
        "created": record.created,
        "ended": record.ended,
        "error": record.error or None,
        "request": record.request,
        "format": record.format,
        "result": record.result or None,
    }
    if handle and not handle.output:
        body["progress"] = handle.job.index / len(handle.job.step_plan.rows)
    if record.state == "completed":
        body["image_url"] = f"/v1/jobs/{record.id}/image"
    return body


def _job_id(client: Client, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return uuid4().hex
    return sha256(f"{client.key}\n{idempotency_key}".encode()).hexdigest()[:32]


async def _decode_base64(text: str, name: str) -> bytes:
    try:
        return await asyncio.to_thread(base64.b64decode, text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the field {name} is not valid base64", allowed="a file in base64") from None
