"""OpenAI's Images API: generations, edits, models and streaming with partial images.

Further fields (seed, steps, guidance, negative_prompt, sampler, strength, queue_timeout) are accepted as extensions.
Fields of the protocol that this server does not support are rejected, not ignored.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from litestar import Response, get, post
from litestar.datastructures import UploadFile
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, JSONBody
from litestar.response import ServerSentEventMessage
from PIL import Image

from stillhouse.check import check_integer
from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import Format
from stillhouse.serve.api.http import (
    KEEP_ALIVE,
    KEEP_ALIVE_SECONDS,
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
    make_event,
    raise_for_failure,
    random_seed,
    response_headers,
    stream_response,
    wait_for_outputs,
)
from stillhouse.serve.api.kserve.protocol import response_parameters
from stillhouse.serve.client import Client
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle, StreamEvent

OutputFormat = Literal["png", "jpeg", "webp"]
"""Image file formats that OpenAI's API offers."""
ResponseFormat = Literal["b64_json", "url"]
"""Ways to return an image: in base64 as part of the response, or as the URL of a stored file."""
MAX_PREVIEWS = 3
_FILE_DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "image": "The image to edit.",
        "mask": "Its transparent pixels are repainted; without transparency, its bright ones.",
    }
)
_LARGE_BYTES = 1 << 18
"""Size in bytes from which an image is encoded to base64 in a thread, so that the event loop is not blocked."""


class ImageGenerationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for images. Fields that are left out take the defaults of the model.

    Args:
        prompt: text that describes the image.
        model: name of the model; if left out, the default model of the API key.
        n: number of images.
        size: `WIDTHxHEIGHT` in pixels, or `auto`, which has the same effect as no size.
        response_format: base64 in the response, or the URL of an image that the server stores.
        output_format: file format of the images; png if left out.
        quality, style, background, moderation: option of OpenAI's API; only values without an effect are accepted.
        user: field of OpenAI's API, which is ignored.
        stream: whether the images are sent as server-sent events, with previews.
        partial_images: number of previews of each image, 0 to 3; needs `stream`.
        negative_prompt: text that guidance leads away from.
        seed: seed of the noise of the first image; each further image adds 1. Random if left out.
        steps: number of sampler steps.
        guidance: scale of classifier-free guidance.
        sampler: name of the sampler.
        strength: share of the steps that an edit runs, above 0 and up to 1.
        queue_timeout: seconds after which an image whose generation has not started expires.
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
    summary="Generate images",
    request_max_body_size=MAX_JSON_BODY,
)
async def create_images(request: ApiRequest, data: JSONBody[ImageGenerationRequest]) -> Response[Any]:
    """Generate images from a prompt, and return them in one response or as a stream of server-sent events."""
    return await _respond(request, await authenticate_request(request), data, "image_generation")


@dataclass
class EditOperation(Operation):
    """OpenAPI description of the route for edits. Its multipart form is not described by any Python type."""

    def __post_init__(self) -> None:
        texts = ("prompt", "model", "size", "negative_prompt", "sampler")
        types = {
            **dict.fromkeys(texts, OpenAPIType.STRING),
            **dict.fromkeys(("n", "seed", "steps", "partial_images"), OpenAPIType.INTEGER),
            **dict.fromkeys(("guidance", "strength", "queue_timeout"), OpenAPIType.NUMBER),
            "stream": OpenAPIType.BOOLEAN,
        }
        fields = {name: Schema(type=schema_type) for name, schema_type in types.items()}
        for name, values in (("response_format", ResponseFormat), ("output_format", OutputFormat)):
            fields[name] = Schema(type=OpenAPIType.STRING, enum=list(get_args(values)))
        files = {
            name: Schema(type=OpenAPIType.STRING, content_encoding="binary", description=description)
            for name, description in _FILE_DESCRIPTIONS.items()
        }
        form = Schema(type=OpenAPIType.OBJECT, required=["image", "prompt"], properties={**files, **fields})
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(form)}, required=True)


@post("/v1/images/edits", status_code=200, tags=["OpenAI"], summary="Edit an image", operation_class=EditOperation)
async def edit_images(request: ApiRequest) -> Response[Any]:
    """Generate images from an image and a prompt. With a mask, only its transparent pixels are repainted."""
    client = await authenticate_request(request)
    form = await request.form()
    fields: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        field = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if field in files:
                raise InvalidRequest(
                    f"the form has several files named {field!r}", allowed="one image, and one mask or none"
                )
            files[field] = value
        else:
            fields[field] = str(value)
    for name in files:
        if name not in ("image", "mask"):
            raise InvalidRequest(f"the form has an unknown file {name!r}", allowed="files named image and mask")
    if "image" not in files:
        fix = "to generate without an image, use /v1/images/generations"
        raise InvalidRequest("the form has no image to edit", allowed="a file named 'image'", fix=fix)
    try:
        data = msgspec.convert(fields, ImageGenerationRequest, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a field of the form is not valid: {error}") from None
    image = await decode_image(request, await files["image"].read())
    mask = await decode_mask(request, await files["mask"].read()) if "mask" in files else None
    if size := _parse_size(data.size):
        _check_size(size, get_service(request).settings.max_pixels)
        image = await asyncio.to_thread(_resize, image, size)
        mask = None if mask is None else await asyncio.to_thread(_resize, mask, size)
    return await _respond(request, client, data, "image_edit", image=image, mask=mask)


@get("/v1/models", tags=["OpenAI"], summary="List models")
async def list_models(request: ApiRequest) -> dict[str, Any]:
    """Return the models that the client may use."""
    client = await authenticate_request(request)
    return {"object": "list", "data": [_model_body(request, name) for name in _allowed_tiers(request, client)]}


@get("/v1/models/{name:str}", tags=["OpenAI"], summary="Get a model")
async def get_model(request: ApiRequest, name: FromPath[str]) -> dict[str, Any]:
    """Return a model with its default steps, guidance, sampler and size."""
    client = await authenticate_request(request)
    if name not in _allowed_tiers(request, client):
        raise NotFound(f"there is no model {name!r}", allowed=", ".join(_allowed_tiers(request, client)))
    return _model_body(request, name)


def _allowed_tiers(request: ApiRequest, client: Client) -> list[str]:
    return [name for name in get_service(request).settings.tiers if name in client.tiers]


def _model_body(request: ApiRequest, name: str) -> dict[str, Any]:
    service = get_service(request)
    tier_settings, manifest = service.settings.tiers[name], service.dispatcher.manifests[name]
    defaults = manifest.defaults
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "stillhouse",
        "pipeline": manifest.name,
        "steps": tier_settings.steps or defaults.steps,
        "guidance": defaults.guidance if tier_settings.guidance is None else tier_settings.guidance,
        "sampler": tier_settings.sampler or defaults.sampler,
        "size": f"{defaults.width}x{defaults.height}",
        "granularity": manifest.granularity,
        "max_steps": tier_settings.max_steps,
    }


async def _respond(
    request: ApiRequest, client: Client, data: ImageGenerationRequest, name: str, **arrays: Any
) -> Response[Any]:
    dispatcher = get_service(request).dispatcher
    requests = _make_requests(request, data, client, **arrays)
    handles = dispatcher.submit_all(requests)
    image_format: OutputFormat = data.output_format or "png"
    if data.stream:
        headers = {
            "x-request-id": ",".join(handle.id for handle in handles),
            "x-seed": ",".join(str(handle.request.seed) for handle in handles),
        }
        headers |= degraded_header(handles)
        return stream_response(_stream(request, handles, name, image_format), headers)
    outputs = await wait_for_outputs(request, handles)
    images = []
    for handle, output in zip(handles, outputs, strict=True):
        fields: dict[str, Any] = {"seed": handle.request.seed}
        if data.response_format == "url":
            image_id = await get_service(request).store_image(handle, output)
            fields["url"] = f"{str(request.base_url).rstrip('/')}/v1/images/{image_id}"
        else:
            fields["b64_json"] = await _encode_base64(output.content)
        images.append(fields)
    body = {
        "created": int(time.time()),
        "data": images,
        **_image_fields(handles[0], image_format),
        "usage": _usage(handles),
    }
    return Response(body, headers=response_headers(handles, outputs))


def _make_requests(
    request: ApiRequest, data: ImageGenerationRequest, client: Client, **arrays: Any
) -> list[GenerationRequest]:
    count = 1 if data.n is None else data.n
    max_images = get_service(request).settings.max_images
    check_integer("n", count, 1, max_images)
    previews = data.partial_images or 0
    check_integer("partial_images", previews, 0, MAX_PREVIEWS)
    if previews and not data.stream:
        allowed = "both partial_images and stream, or neither"
        raise InvalidRequest("partial_images is set without stream", allowed=allowed, fix="set stream to true")
    if data.stream and data.response_format == "url":
        raise InvalidRequest("response_format is 'url', but streams contain no URLs", allowed="b64_json")
    if "image" not in arrays and data.strength is not None:
        raise InvalidRequest("strength is set without an image", allowed="strength for edits of an image")
    width, height = _parse_size(data.size) or (None, None)
    first = random_seed() if data.seed is None else data.seed
    image_format: Format = data.output_format or "png"
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
            image_format,
            previews,
            data.queue_timeout,
            traceparent=request.headers.get("traceparent"),
        )
        for number in range(count)
    ]


async def _stream(
    request: ApiRequest, handles: Sequence[RequestHandle], name: str, image_format: OutputFormat
) -> AsyncIterator[ServerSentEventMessage]:
    """Yield a server-sent event for every preview and every finished image as soon as it exists.

    If a request fails, an event with the error is yielded and the unfinished requests are cancelled.

    Args:
        request: the HTTP request.
        handles: requests of the images.
        name: first part of the names of the events, such as "image_generation".
        image_format: file format of the finished images; previews are WebP.
    """
    events: asyncio.Queue[tuple[RequestHandle, StreamEvent]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_forward_events(handle, events)) for handle in handles]
    pending = {handle.id: handle for handle in handles}
    try:
        while pending:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    handle, event = await events.get()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if isinstance(event, PreviewImage):
                fields = {"b64_json": await _encode_base64(event.content), "partial_image_index": event.number}
                yield _image_event(f"{name}.partial_image", handle, fields, "webp")
            elif isinstance(event, RequestOutput):
                raise_for_failure(event, handle)
                fields = {
                    "b64_json": await _encode_base64(event.content),
                    "usage": _usage([handle]),
                    **response_parameters(handle, event),
                }
                if event.is_prompt_truncated:
                    fields["prompt_truncated"] = True
                yield _image_event(f"{name}.completed", handle, fields, image_format)
                del pending[handle.id]
    except RequestFailed as failed:
        error = {"message": str(failed), "type": "server_error", "code": failed.error_type, "param": None}
        yield make_event("error", {"type": "error", "error": error})
        for handle in pending.values():
            get_service(request).dispatcher.cancel(handle.id, "failed")
        pending.clear()
    finally:
        for task in tasks:
            task.cancel()
        handle_disconnect(get_service(request), list(pending.values()))


async def _forward_events(handle: RequestHandle, events: asyncio.Queue[tuple[RequestHandle, StreamEvent]]) -> None:
    async with aclosing(handle.stream()) as stream:  # type: ignore[type-var]
        async for event in stream:
            events.put_nowait((handle, event))


def _image_event(name: str, handle: RequestHandle, fields: dict[str, Any], image_format: str) -> ServerSentEventMessage:
    body = {
        "type": name,
        "created_at": int(time.time()),
        **_image_fields(handle, image_format),
        "seed": handle.request.seed,
    }
    return make_event(name, {**body, **fields})


def _image_fields(handle: RequestHandle, image_format: str) -> dict[str, Any]:
    size = f"{handle.request.width}x{handle.request.height}"
    return {"background": "opaque", "output_format": image_format, "quality": "medium", "size": size}


def _usage(handles: Sequence[RequestHandle]) -> dict[str, Any]:
    """Return the field `usage` of OpenAI's responses.

    The field counts pixels times network evaluations as output tokens, because diffusion models have no image tokens.
    """
    total = sum(handle.job.batch_key.pixels * len(handle.job.step_plan.rows) for handle in handles)
    input_details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": input_details, "output_tokens": total, "total_tokens": total}


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Return the width and height in a text `WIDTHxHEIGHT`; None if the text is "auto" or None.

    Raises:
        InvalidRequest: the text does not have this form.
    """
    if text is None or text == "auto":
        return None
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()) or len(text) > 11:
        raise InvalidRequest(f"size is {text!r}", allowed="WIDTHxHEIGHT in pixels, or auto")
    return int(width), int(height)


def _check_size(size: tuple[int, int], pixels: int) -> None:
    if not 1 <= size[0] * size[1] <= pixels:
        raise InvalidRequest(f"size is {size[0]}x{size[1]}", allowed=f"up to {pixels:,} pixels")


def _resize(image: Picture, size: tuple[int, int]) -> Any:
    if image.shape[:2] == size[::-1]:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


async def _encode_base64(content: bytes) -> str:
    encoded = (
        base64.b64encode(content) if len(content) < _LARGE_BYTES else await asyncio.to_thread(base64.b64encode, content)
    )
    return encoded.decode("ascii")
