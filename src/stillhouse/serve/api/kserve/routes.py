"""KServe's protocol, version 2, over HTTP, with tensors as JSON or as bytes behind it."""

import asyncio
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.exceptions import ClientException
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Parameter, RequestBody, Schema
from litestar.params import FromPath
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE

from stillhouse import __version__
from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.http import LARGEST, Asked, caller_of, ends, headers_of, service_of
from stillhouse.serve.api.kserve.http_body import decoded, read, write
from stillhouse.serve.api.kserve.protocol import EXTENSIONS, SERVER, VERSION, check_model, described, facts_of, order_of
from stillhouse.serve.api.kserve.tensors import INPUTS, OUTPUTS, SHOWN, chosen, picture_of
from stillhouse.serve.client import Caller
from stillhouse.units import read_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"
_MODEL = ["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"]


class Index(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the list of models: of those that are ready, or of all."""

    ready: bool = False


@get("/v2", tags=["KServe"], summary="What this server is")
async def server() -> dict[str, Any]:
    """Its name, version and extensions of the protocol."""
    return {"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)}


@get("/v2/health/live", tags=["KServe"], summary="Whether the process answers")
async def live() -> dict[str, bool]:
    """It does."""
    return {"live": True}


@get("/v2/health/ready", tags=["KServe"], summary="Whether requests are taken")
async def ready(request: Asked) -> Response[dict[str, bool]]:
    """200 where a worker is ready and the server is not being shut down; 503 otherwise."""
    is_ready = service_of(request).front.is_ready
    return Response({"ready": is_ready}, status_code=200 if is_ready else 503)


@get([f"{path}/ready" for path in _MODEL], tags=["KServe"], summary="Whether a model is ready")
async def model_ready(
    request: Asked, name: FromPath[str], version: FromPath[str] = VERSION
) -> Response[dict[str, Any]]:
    """As the server is; 404 where there is no such model. Probes have no key, so none is asked for."""
    service = service_of(request)
    check_model(service.settings.tiers, name, version)
    is_ready = service.front.is_ready
    return Response({"name": name, "ready": is_ready}, status_code=200 if is_ready else 503)


@get(_MODEL, tags=["KServe"], summary="Inputs and outputs of a model")
async def model(request: Asked, name: FromPath[str], version: FromPath[str] = VERSION) -> dict[str, Any]:
    """Its metadata."""
    await _caller(request, name, version)
    return described(name, service_of(request).front.manifests[name])


@post(
    "/v2/repository/index",
    status_code=200,
    tags=["KServe"],
    summary="Models that can be asked for",
    request_max_body_size=LARGEST,
)
async def index(request: Asked) -> list[dict[str, str]]:
    """All models of the caller's key, or those that are ready."""
    caller = await caller_of(request)
    asked = decoded(await request.body() or b"{}", Index)
    service = service_of(request)
    if asked.ready and not service.front.is_ready:
        return []
    state = "READY" if service.front.is_ready else "UNAVAILABLE"
    names = [name for name in service.settings.tiers if name in caller.tiers]
    return [{"name": name, "version": VERSION, "state": state, "reason": ""} for name in names]


_TENSOR = Schema(
    type=OpenAPIType.OBJECT,
    required=["name", "datatype", "shape"],
    properties={
        "name": Schema(type=OpenAPIType.STRING, enum=list(INPUTS)),
        "datatype": Schema(type=OpenAPIType.STRING, enum=sorted({spec.datatype for spec in INPUTS.values()})),
        "shape": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.INTEGER)),
        "parameters": Schema(type=OpenAPIType.OBJECT),
        "data": Schema(type=OpenAPIType.ARRAY),
    },
)
_INFERENCE = Schema(
    type=OpenAPIType.OBJECT,
    required=["inputs"],
    properties={
        "id": Schema(type=OpenAPIType.STRING),
        "parameters": Schema(type=OpenAPIType.OBJECT),
        "inputs": Schema(type=OpenAPIType.ARRAY, items=_TENSOR),
        "outputs": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT,
                required=["name"],
                properties={
                    "name": Schema(type=OpenAPIType.STRING, enum=list(OUTPUTS)),
                    "parameters": Schema(type=OpenAPIType.OBJECT),
                },
            ),
        ),
    },
)


class InferOperation(Operation):
    """A body of JSON with bytes behind it, which is not described by a type."""

    def __post_init__(self) -> None:
        content = {"application/json": OpenAPIMediaType(schema=_INFERENCE)}
        self.request_body = RequestBody(required=True, content=content)
        length = Parameter(HEADER_LENGTH, "header", schema=Schema(type=OpenAPIType.INTEGER), required=False)
        self.parameters = [*(self.parameters or []), length]


@post(
    [f"{path}/infer" for path in _MODEL],
    status_code=200,
    tags=["KServe"],
    summary="Draw a picture",
    operation_class=InferOperation,
    request_max_body_size=LARGEST,
)
async def infer(request: Asked, name: FromPath[str], version: FromPath[str] = VERSION) -> Response[bytes]:
    """Inputs PROMPT, NEGATIVE_PROMPT, SEED, STEPS, GUIDANCE; outputs IMAGE and SEED."""
    caller = await _caller(request, name, version)
    service = service_of(request)
    reading = read(await _body(request), request.headers.get(HEADER_LENGTH))
    trace = request.headers.get("traceparent")
    ticket = service.front.place(order_of(reading.inputs, reading.parameters, name, caller, trace=trace))
    closed = await ends(request, [ticket])
    outputs = chosen(picture_of(ticket.request, closed[0].content), list(reading.wanted))
    told = {"model_name": name, "model_version": VERSION, "parameters": facts_of(ticket, closed[0])}
    told |= {} if reading.id is None else {"id": reading.id}
    content, length = await asyncio.to_thread(write, told, outputs, reading)
    headers = headers_of([ticket], closed)
    if length is None:
        return Response(content, headers=headers, media_type="application/json")
    return Response(content, headers=headers | {HEADER_LENGTH: str(length)}, media_type="application/octet-stream")


HANDLERS = [server, live, ready, model_ready, model, index, infer]


async def _caller(request: Asked, name: str, version: str) -> Caller:
    caller = await caller_of(request)
    check_model(service_of(request).settings.tiers, name, version, caller)
    return caller


async def _body(request: Asked) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise InvalidRequest(f"a body in {encoding[:SHOWN]}", allowed="a body that is not compressed")
    body = await request.body()
    if len(body) > read_bytes(service_of(request).settings.body):
        raise ClientException("Request Entity Too Large", status_code=HTTP_413_REQUEST_ENTITY_TOO_LARGE)
    return body
