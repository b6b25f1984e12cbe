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

from stillhouse.check import check_whole
from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.formats import Format
from stillhouse.serve.api.events import KEEP_ALIVE, SILENCE, event
from stillhouse.serve.api.http import (
    LARGEST,
    Asked,
    Failed,
    Missing,
    caller_of,
    degraded,
    ends,
    headers_of,
    leave,
    mask_of,
    picture_of,
    raise_for,
    service_of,
)
from stillhouse.serve.api.kserve.protocol import facts_of
from stillhouse.serve.api.seeds import new_seed
from stillhouse.serve.client import Caller
from stillhouse.serve.request_handle import Event, Order, Shown, Ticket
from stillhouse.serve.worker.messages import Closed

Output = Literal["png", "jpeg", "webp"]
"""Formats that this protocol knows."""
Way = Literal["b64_json", "url"]
"""In which a picture is answered."""
MOST_PREVIEWS = 3
_MUCH = 1 << 18
"""Bytes from which on base64 is written beside the loop."""


class Generation(msgspec.Struct, forbid_unknown_fields=True):
    """A request for pictures; what is left out is as the model's tier says.

    `model` is a tier. `quality`, `style`, `background` and `moderation` have no meaning here and take their neutral
    values only; `user` is taken and not used. A picture that could not be begun within `patience` seconds is not begun.
    """

    prompt: str
    model: str | None = None
    n: int | None = 1
    size: str | None = None
    response_format: Way | None = None
    output_format: Output | None = None
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
    patience: float | None = None


@post(
    "/v1/images/generations",
    status_code=200,
    tags=["OpenAI"],
    summary="Draw pictures",
    request_max_body_size=LARGEST,
)
async def generations(request: Asked, data: JSONBody[Generation]) -> Response[Any]:
    """Pictures from a prompt."""
    return await _answer(request, await caller_of(request), data, "image_generation")


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
        for name, values in (("response_format", Way), ("output_format", Output)):
            fields[name] = Schema(type=OpenAPIType.STRING, enum=list(get_args(values)))
        files = {name: Schema(type=OpenAPIType.STRING, content_encoding="binary") for name in ("image", "mask")}
        form = Schema(type=OpenAPIType.OBJECT, required=["image", "prompt"], properties={**files, **fields})
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(form)}, required=True)


@post("/v1/images/edits", status_code=200, tags=["OpenAI"], summary="Change a picture", operation_class=EditOperation)
async def edits(request: Asked) -> Response[Any]:
    """Pictures from a picture and a prompt; with a mask, what is transparent in it is repainted, and nothing else."""
    caller = await caller_of(request)
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
        data = msgspec.convert(fields, Generation, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the form: {error}") from None
    image = await picture_of(request, await files["image"].read())
    mask = await mask_of(request, await files["mask"].read()) if "mask" in files else None
    if size := _size(data.size):
        _check_size(size, service_of(request).settings.pixels)
        image = await asyncio.to_thread(_resized, image, size)
        mask = None if mask is None else await asyncio.to_thread(_resized, mask, size)
    return await _answer(request, caller, data, "image_edit", image=image, mask=mask)


@get("/v1/models", tags=["OpenAI"], summary="What can be asked for")
async def models(request: Asked) -> dict[str, Any]:
    """The tiers that the caller may ask for."""
    caller = await caller_of(request)
    return {"object": "list", "data": [_model(request, name) for name in _tiers(request, caller)]}


@get("/v1/models/{name:str}", tags=["OpenAI"], summary="One of them")
async def model(request: Asked, name: FromPath[str]) -> dict[str, Any]:
    """A tier, and what its requests are filled in with."""
    caller = await caller_of(request)
    if name not in _tiers(request, caller):
        raise Missing(f"there is no model {name!r}", allowed=", ".join(_tiers(request, caller)))
    return _model(request, name)


def _tiers(request: Asked, caller: Caller) -> list[str]:
    return [name for name in service_of(request).settings.tiers if name in caller.tiers]


def _model(request: Asked, name: str) -> dict[str, Any]:
    service = service_of(request)
    way, manifest = service.settings.tiers[name], service.front.manifests[name]
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
        "most_steps": way.most_steps,
    }


async def _answer(request: Asked, caller: Caller, data: Generation, name: str, **arrays: Any) -> Response[Any]:
    front = service_of(request).front
    orders = _orders(request, data, caller, **arrays)
    tickets = front.place_all(orders)
    kind: Output = data.output_format or "png"
    if data.stream:
        headers = {"x-request-id": ",".join(one.id for one in tickets), "cache-control": "no-store"}
        headers["x-seed"] = ",".join(str(one.request.seed) for one in tickets)
        headers |= degraded(tickets)
        return Stream(_stream(request, tickets, name, kind), media_type="text/event-stream", headers=headers)
    closed = await ends(request, tickets)
    pictures = []
    for ticket, one in zip(tickets, closed, strict=True):
        told: dict[str, Any] = {"seed": ticket.request.seed}
        if data.response_format == "url":
            kept = await service_of(request).keep(ticket, one)
            told["url"] = f"{str(request.base_url).rstrip('/')}/v1/pictures/{kept}"
        else:
            told["b64_json"] = await _text(one.content)
        pictures.append(told)
    body = {"created": int(time.time()), "data": pictures, **_facts(tickets[0], kind), "usage": _usage(tickets)}
    return Response(body, headers=headers_of(tickets, closed))


def _orders(request: Asked, data: Generation, caller: Caller, **arrays: Any) -> list[Order]:
    count = 1 if data.n is None else data.n
    most = service_of(request).settings.count
    check_whole("n", count, 1, most)
    previews = data.partial_images or 0
    check_whole("partial_images", previews, 0, MOST_PREVIEWS)
    if previews and not data.stream:
        raise InvalidRequest("partial_images without stream", allowed="both, or neither", fix="set stream to true")
    if data.stream and data.response_format == "url":
        raise InvalidRequest("response_format 'url' of a stream", allowed="b64_json")
    if "image" not in arrays and data.strength is not None:
        raise InvalidRequest("strength without an image", allowed="strength for edits")
    width, height = _size(data.size) or (None, None)
    first = new_seed() if data.seed is None else data.seed
    kind: Format = data.output_format or "png"
    return [
        Order(
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
            caller,
            data.model,
            kind,
            previews,
            data.patience,
            trace=request.headers.get("traceparent"),
        )
        for number in range(count)
    ]


async def _stream(request: Asked, tickets: Sequence[Ticket], name: str, kind: Output) -> AsyncIterator[bytes]:
    """Server-sent events: every preview, and every picture when it is done; whichever comes first."""
    news: asyncio.Queue[tuple[Ticket, Event]] = asyncio.Queue()
    listening = [asyncio.ensure_future(_listen(ticket, news)) for ticket in tickets]
    awaited = {ticket.id: ticket for ticket in tickets}
    try:
        while awaited:
            try:
                async with asyncio.timeout(SILENCE):
                    ticket, one = await news.get()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if isinstance(one, Shown):
                told = {"b64_json": await _text(one.content), "partial_image_index": one.number}
                yield _event(f"{name}.partial_image", ticket, told, "webp")
            elif isinstance(one, Closed):
                raise_for(one, ticket)
                told = {"b64_json": await _text(one.content), "usage": _usage([ticket]), **facts_of(ticket, one)}
                if one.is_cut:
                    told["prompt_cut"] = True
                yield _event(f"{name}.completed", ticket, told, kind)
                del awaited[ticket.id]
    except Failed as failed:
        error = {"message": str(failed), "type": "server_error", "code": failed.fault, "param": None}
        yield event("error", json.dumps({"type": "error", "error": error}))
        for ticket in awaited.values():
            service_of(request).front.cancel(ticket.id, "failed")
        awaited.clear()
    finally:
        for task in listening:
            task.cancel()
        leave(service_of(request), list(awaited.values()))


async def _listen(ticket: Ticket, news: asyncio.Queue[tuple[Ticket, Event]]) -> None:
    async with aclosing(ticket.events()) as happening:  # type: ignore[type-var]
        async for one in happening:
            news.put_nowait((ticket, one))


def _event(name: str, ticket: Ticket, told: dict[str, Any], kind: str) -> bytes:
    facts = {"type": name, "created_at": int(time.time()), **_facts(ticket, kind), "seed": ticket.request.seed}
    return event(name, json.dumps({**facts, **told}))


def _facts(ticket: Ticket, kind: str) -> dict[str, Any]:
    size = f"{ticket.request.width}x{ticket.request.height}"
    return {"background": "opaque", "output_format": kind, "quality": "medium", "size": size}


def _usage(tickets: Sequence[Ticket]) -> dict[str, Any]:
    """This protocol counts tokens; there are none, so pixel-steps stand in their place."""
    total = sum(ticket.job.group.pixels * len(ticket.job.walk.rows) for ticket in tickets)
    nothing = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": nothing, "output_tokens": total, "total_tokens": total}


def _size(text: str | None) -> tuple[int, int] | None:
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


def _resized(picture: Picture, size: tuple[int, int]) -> Any:
    if picture.shape[:2] == size[::-1]:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


async def _text(content: bytes) -> str:
    encoded = base64.b64encode(content) if len(content) < _MUCH else await asyncio.to_thread(base64.b64encode, content)
    return encoded.decode("ascii")
