"""OpenAI's images: generations, edits, models, with previews on the way.

What that protocol does not have (seed, steps, guidance, negative_prompt, sampler, strength) is accepted beside it; what
it has and this server cannot do is refused and not ignored.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from litestar import Response, get, post
from litestar.datastructures import UploadFile
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, JSONBody
from litestar.response import Stream
from PIL import Image

from stillhouse.check import check_integer
from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.formats import Format
from stillhouse.serve.api.events import KEEP_ALIVE, KEEP_ALIVE_SECONDS, format_event
from stillhouse.serve.api.http import (
    MAX_JSON_BODY,
    ApiRequest,
    NotFound,
    RequestFailed,
    authenticate_request,
    decode_image,
    decode_mask,
    degraded_header,
    get_service,
    handle_disconnect,
    raise_for_failure,
    response_headers,
    wait_for_outputs,
)
from stillhouse.serve.api.kserve.protocol import response_parameters
from stillhouse.serve.api.seeds import random_seed
from stillhouse.serve.client import Client
from stillhouse.serve.request_handle import GenerationRequest, PreviewImage, RequestHandle, StreamEvent
from stillhouse.serve.worker.messages import RequestOutput

OutputFormat = Literal["png", "jpeg", "webp"]
"""Formats that this protocol knows."""
ResponseFormat = Literal["b64_json", "url"]
"""In which a picture is answered."""
MAX_PREVIEWS = 3
_LARGE_BYTES = 1 << 18
"""Bytes from which on base64 is written beside the loop."""


class ImageGenerationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for pictures; what is left out is as the model's tier says.

    `model` is a tier. `quality`, `style`, `background` and `moderation` have no meaning here and take their neutral
    values only; `user` is taken and not used. A picture that could not be begun within `patience` seconds is not begun.
    """

    prompt: str
    model: str | None = None
    n: int | None = 1
    size: str | None = None
    response_format: ResponseFormat | None = None
    output_format: OutputFormat | None = None
    quality: Literal["auto", "standard"] | None = None
    style: None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto"] | None = None
    user: str | None = None
    stream: bool | None = False
    partial_images: int | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    strength: float | None = None
    queue_timeout: float | None = None


@post(
    "/v1/images/generations",
    status_code=200,
    tags=["OpenAI"],
    summary="Draw pictures",
    request_max_body_size=MAX_JSON_BODY,
)
async def create_images(request: ApiRequest, data: JSONBody[ImageGenerationRequest]) -> Response[Any]:
    """Pictures from a prompt."""
    return await _respond(request, await authenticate_request(request), data, "image_generation")


@dataclass
class EditOperation(Operation):
    """A form, which is not described by a type."""

    def __post_init__(self) -> None:
        texts = ("prompt", "model", "size", "negative_prompt", "sampler")
        kinds = {
            **dict.fromkeys(texts, OpenAPIType.STRING),
            **dict.fromkeys(("n", "seed", "steps", "partial_images"), OpenAPIType.INTEGER),
            **dict.fromkeys(("guidance", "strength", "patience"), OpenAPIType.NUMBER),
            "stream": OpenAPIType.BOOLEAN,
        }
        fields = {name: Schema(type=kind) for name, kind in kinds.items()}
        for name, values in (("response_format", ResponseFormat), ("output_format", OutputFormat)):
            fields[name] = Schema(type=OpenAPIType.STRING, enum=list(get_args(values)))
        files = {name: Schema(type=OpenAPIType.STRING, content_encoding="binary") for name in ("image", "mask")}
        form = Schema(type=OpenAPIType.OBJECT, required=["image", "prompt"], properties={**files, **fields})
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(form)}, required=True)


@post("/v1/images/edits", status_code=200, tags=["OpenAI"], summary="Change a picture", operation_class=EditOperation)
async def edit_images(request: ApiRequest) -> Response[Any]:
    """Pictures from a picture and a prompt; with a mask, what is transparent in it is repainted, and nothing else."""
    caller = await authenticate_request(request)
    form = await request.form()
    fields: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        known = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if known in files:
                raise InvalidRequest(f"several files named {known!r}", allowed="one picture, and one mask")
            files[known] = value
        else:
            fields[known] = str(value)
    for name in files:
        if name not in ("image", "mask"):
            raise InvalidRequest(f"a file named {name!r}", allowed="image, mask")
    if "image" not in files:
        raise InvalidRequest("an edit without an image", allowed="a file named 'image'", fix="or use generations")
    try:
        data = msgspec.convert(fields, ImageGenerationRequest, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the form: {error}") from None
    image = await decode_image(request, await files["image"].read())
    mask = await decode_mask(request, await files["mask"].read()) if "mask" in files else None
    if size := _parse_size(data.size):
        _check_size(size, get_service(request).settings.pixels)
        image = await asyncio.to_thread(_resize, image, size)
        mask = None if mask is None else await asyncio.to_thread(_resize, mask, size)
    return await _respond(request, caller, data, "image_edit", image=image, mask=mask)


@get("/v1/models", tags=["OpenAI"], summary="What can be asked for")
async def list_models(request: ApiRequest) -> dict[str, Any]:
    """The tiers that the caller may ask for."""
    caller = await authenticate_request(request)
    return {"object": "list", "data": [_model_body(request, name) for name in _allowed_tiers(request, caller)]}


@get("/v1/models/{name:str}", tags=["OpenAI"], summary="One of them")
async def get_model(request: ApiRequest, name: FromPath[str]) -> dict[str, Any]:
    """A tier, and what its requests are filled in with."""
    caller = await authenticate_request(request)
    if name not in _allowed_tiers(request, caller):
        raise NotFound(f"there is no model {name!r}", allowed=", ".join(_allowed_tiers(request, caller)))
    return _model_body(request, name)


def _allowed_tiers(request: ApiRequest, client: Client) -> list[str]:
    return [name for name in get_service(request).settings.tiers if name in client.tiers]


def _model_body(request: ApiRequest, name: str) -> dict[str, Any]:
    service = get_service(request)
    way, manifest = service.settings.tiers[name], service.dispatcher.manifests[name]
    defaults = manifest.defaults
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "stillhouse",
        "pipeline": manifest.name,
        "steps": way.steps or defaults.steps,
        "guidance": defaults.guidance if way.guidance is None else way.guidance,
        "sampler": way.sampler or defaults.sampler,
        "size": f"{defaults.width}x{defaults.height}",
        "granularity": manifest.granularity,
        "most_steps": way.max_steps,
    }


async def _respond(
    request: ApiRequest, client: Client, data: ImageGenerationRequest, name: str, **arrays: Any
) -> Response[Any]:
    front = get_service(request).dispatcher
    orders = _make_requests(request, data, client, **arrays)
    tickets = front.submit_all(orders)
    kind: OutputFormat = data.output_format or "png"
    if data.stream:
        headers = {"x-request-id": ",".join(one.id for one in tickets), "cache-control": "no-store"}
        headers["x-seed"] = ",".join(str(one.request.seed) for one in tickets)
        headers |= degraded_header(tickets)
        return Stream(_stream(request, tickets, name, kind), media_type="text/event-stream", headers=headers)
    closed = await wait_for_outputs(request, tickets)
    pictures = []
    for ticket, one in zip(tickets, closed, strict=True):
        told: dict[str, Any] = {"seed": ticket.request.seed}
        if data.response_format == "url":
            kept = await get_service(request).store_image(ticket, one)
            told["url"] = f"{str(request.base_url).rstrip('/')}/v1/pictures/{kept}"
        else:
            told["b64_json"] = await _encode_base64(one.content)
        pictures.append(told)
    body = {"created": int(time.time()), "data": pictures, **_image_fields(tickets[0], kind), "usage": _usage(tickets)}
    return Response(body, headers=response_headers(tickets, closed))


def _make_requests(
    request: ApiRequest, data: ImageGenerationRequest, client: Client, **arrays: Any
) -> list[GenerationRequest]:
    count = 1 if data.n is None else data.n
    most = get_service(request).settings.count
    check_integer("n", count, 1, most)
    previews = data.partial_images or 0
    check_integer("partial_images", previews, 0, MAX_PREVIEWS)
    if previews and not data.stream:
        raise InvalidRequest("partial_images without stream", allowed="both, or neither", fix="set stream to true")
    if data.stream and data.response_format == "url":
        raise InvalidRequest("response_format 'url' of a stream", allowed="b64_json")
    if "image" not in arrays and data.strength is not None:
        raise InvalidRequest("strength without an image", allowed="strength for edits")
    width, height = _parse_size(data.size) or (None, None)
    first = random_seed() if data.seed is None else data.seed
    kind: Format = data.output_format or "png"
    return [
        GenerationRequest(
            ImageRequest(
                data.prompt,
                negative_prompt=data.negative_prompt,
                seed=first + number,
                steps=data.steps,
                guidance=data.guidance,
                sampler=data.sampler,
                width=width,
                height=height,
                strength=data.strength,
                **arrays,
            ),
            client,
            data.model,
            kind,
            previews,
            data.queue_timeout,
            traceparent=request.headers.get("traceparent"),
        )
        for number in range(count)
    ]


async def _stream(
    request: ApiRequest, handles: Sequence[RequestHandle], name: str, image_format: OutputFormat
) -> AsyncIterator[bytes]:
    """Server-sent events: every preview, and every picture when it is done; whichever comes first."""
    news: asyncio.Queue[tuple[RequestHandle, StreamEvent]] = asyncio.Queue()
    listening = [asyncio.ensure_future(_forward_events(ticket, news)) for ticket in handles]
    awaited = {ticket.id: ticket for ticket in handles}
    try:
        while awaited:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    ticket, one = await news.get()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if isinstance(one, PreviewImage):
                told = {"b64_json": await _encode_base64(one.content), "partial_image_index": one.number}
                yield _image_event(f"{name}.partial_image", ticket, told, "webp")
            elif isinstance(one, RequestOutput):
                raise_for_failure(one, ticket)
                told = {
                    "b64_json": await _encode_base64(one.content),
                    "usage": _usage([ticket]),
                    **response_parameters(ticket, one),
                }
                if one.is_prompt_truncated:
                    told["prompt_cut"] = True
                yield _image_event(f"{name}.completed", ticket, told, image_format)
                del awaited[ticket.id]
    except RequestFailed as failed:
        error = {"message": str(failed), "type": "server_error", "code": failed.error_type, "param": None}
        yield format_event("error", json.dumps({"type": "error", "error": error}))
        for ticket in awaited.values():
            get_service(request).dispatcher.cancel(ticket.id, "failed")
        awaited.clear()
    finally:
        for task in listening:
            task.cancel()
        handle_disconnect(get_service(request), list(awaited.values()))


async def _forward_events(handle: RequestHandle, news: asyncio.Queue[tuple[RequestHandle, StreamEvent]]) -> None:
    async with aclosing(handle.stream()) as happening:  # type: ignore[type-var]
        async for one in happening:
            news.put_nowait((handle, one))


def _image_event(name: str, handle: RequestHandle, fields: dict[str, Any], image_format: str) -> bytes:
    facts = {
        "type": name,
        "created_at": int(time.time()),
        **_image_fields(handle, image_format),
        "seed": handle.request.seed,
    }
    return format_event(name, json.dumps({**facts, **fields}))


def _image_fields(handle: RequestHandle, image_format: str) -> dict[str, Any]:
    size = f"{handle.request.width}x{handle.request.height}"
    return {"background": "opaque", "output_format": image_format, "quality": "medium", "size": size}


def _usage(handles: Sequence[RequestHandle]) -> dict[str, Any]:
    """This protocol counts tokens; there are none, so pixel-steps stand in their place."""
    total = sum(ticket.job.batch_key.pixels * len(ticket.job.step_plan.rows) for ticket in handles)
    nothing = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": nothing, "output_tokens": total, "total_tokens": total}


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height; None where nothing, or "auto", is asked for."""
    if text is None or text == "auto":
        return None
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()) or len(text) > 11:
        raise InvalidRequest(f"size is {text!r}", allowed="WIDTHxHEIGHT in pixels, or auto")
    return int(width), int(height)


def _check_size(size: tuple[int, int], pixels: int) -> None:
    if not 1 <= size[0] * size[1] <= pixels:
        raise InvalidRequest(f"size is {size[0]}x{size[1]}", allowed=f"up to {pixels:,} pixels")


def _resize(picture: Picture, size: tuple[int, int]) -> Any:
    if picture.shape[:2] == size[::-1]:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


async def _encode_base64(content: bytes) -> str:
    encoded = (
        base64.b64encode(content) if len(content) < _LARGE_BYTES else await asyncio.to_thread(base64.b64encode, content)
    )
    return encoded.decode("ascii")
