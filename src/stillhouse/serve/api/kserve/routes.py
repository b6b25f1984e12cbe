"""HTTP routes of KServe's protocol, version 2, with tensors as JSON or binary data."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.exceptions import ClientException
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Parameter, RequestBody, Schema
from litestar.params import FromPath
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE

from stillhouse import __version__
from stillhouse.errors import InvalidRequest
from stillhouse.serve.api.http import (
    MAX_JSON_BODY,
    ApiRequest,
    authenticate_request,
    get_service,
    response_headers,
    wait_for_outputs,
)
from stillhouse.serve.api.kserve.http_body import decode_json, format_body, parse_body
from stillhouse.serve.api.kserve.protocol import (
    EXTENSIONS,
    SERVER,
    VERSION,
    check_model,
    describe_model,
    make_generation_request,
    response_parameters,
)
from stillhouse.serve.api.kserve.tensors import INPUTS, MAX_ECHO, OUTPUTS, image_tensors, select_outputs
from stillhouse.serve.client import Client
from stillhouse.units import parse_size

HEADER_LENGTH = "Inference-Header-Content-Length"
_MODEL = ["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"]


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request for the list of models (KServe's repository index).

    Args:
        ready: whether only models that are ready are listed.
    """

    ready: bool = False


@get("/v2", tags=["KServe"], summary="Server metadata")
async def get_server_metadata() -> dict[str, Any]:
    """Return the server's name, version and protocol extensions."""
    return {"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)}


@get("/v2/health/live", tags=["KServe"], summary="Liveness")
async def get_server_live() -> dict[str, bool]:
    """Return 200 while the process answers."""
    return {"live": True}


@get("/v2/health/ready", tags=["KServe"], summary="Readiness")
async def get_server_ready(request: ApiRequest) -> Response[dict[str, bool]]:
    """Return 200 if a worker is ready and the server is not shutting down, else 503."""
    is_ready = get_service(request).dispatcher.is_ready
    return Response({"ready": is_ready}, status_code=200 if is_ready else 503)


@get([f"{path}/ready" for path in _MODEL], tags=["KServe"], summary="Model readiness")
async def get_model_ready(
    request: ApiRequest, name: FromPath[str], version: FromPath[str] = VERSION
) -> Response[dict[str, Any]]:
    """Return 200 if the model is ready, 503 if not, 404 if it does not exist. No API key is required."""
    service = get_service(request)
    check_model(service.settings.tiers, name, version)
    is_ready = service.dispatcher.is_ready
    return Response({"name": name, "ready": is_ready}, status_code=200 if is_ready else 503)


@get(_MODEL, tags=["KServe"], summary="Model metadata")
async def get_model_metadata(
    request: ApiRequest, name: FromPath[str], version: FromPath[str] = VERSION
) -> dict[str, Any]:
    """Return the names, datatypes and shapes of a model's input and output tensors."""
    await _authenticate_for_model(request, name, version)
    return describe_model(name, get_service(request).dispatcher.manifests[name])


@post(
    "/v2/repository/index",
    status_code=200,
    tags=["KServe"],
    summary="List models",
    request_max_body_size=MAX_JSON_BODY,
)
async def repository_index(request: ApiRequest) -> list[dict[str, str]]:
    """Return the models that the client may use. If `ready` is true in the body, return only those that are ready."""
    client = await authenticate_request(request)
    body = decode_json(await request.body() or b"{}", IndexRequest)
    service = get_service(request)
    if body.ready and not service.dispatcher.is_ready:
        return []
    state = "READY" if service.dispatcher.is_ready else "UNAVAILABLE"
    names = [name for name in service.settings.tiers if name in client.tiers]
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


@dataclass
class InferOperation(Operation):
    """OpenAPI description of the inference route, whose body (JSON followed by bytes) no Python type describes."""

    def __post_init__(self) -> None:
        content = {"application/json": OpenAPIMediaType(schema=_INFERENCE)}
        self.request_body = RequestBody(required=True, content=content)
        length = Parameter(HEADER_LENGTH, "header", schema=Schema(type=OpenAPIType.INTEGER), required=False)
        self.parameters = [*(self.parameters or []), length]


@post(
    [f"{path}/infer" for path in _MODEL],
    status_code=200,
    tags=["KServe"],
    summary="Run inference",
    operation_class=InferOperation,
    request_max_body_size=MAX_JSON_BODY,
)
async def infer(request: ApiRequest, name: FromPath[str], version: FromPath[str] = VERSION) -> Response[bytes]:
    """Generate an image. The input tensors are PROMPT, NEGATIVE_PROMPT, SEED, STEPS and GUIDANCE. The output tensors
    are IMAGE and SEED.
    """
    client = await _authenticate_for_model(request, name, version)
    service = get_service(request)
    parsed = parse_body(await _read_body(request), request.headers.get(HEADER_LENGTH))
    traceparent = request.headers.get("traceparent")
    handle = service.dispatcher.submit(
        make_generation_request(parsed.inputs, parsed.parameters, name, client, traceparent=traceparent)
    )
    (output,) = await wait_for_outputs(request, [handle])
    outputs = select_outputs(image_tensors(handle.request, output.content), list(parsed.requested))
    fields = {"model_name": name, "model_version": VERSION, "parameters": response_parameters(handle, output)}
    fields |= {} if parsed.id is None else {"id": parsed.id}
    content, length = await asyncio.to_thread(format_body, fields, outputs, parsed)
    headers = response_headers([handle], [output])
    if length is None:
        return Response(content, headers=headers, media_type="application/json")
    return Response(content, headers=headers | {HEADER_LENGTH: str(length)}, media_type="application/octet-stream")


HANDLERS = [
    get_server_metadata,
    get_server_live,
    get_server_ready,
    get_model_ready,
    get_model_metadata,
    repository_index,
    infer,
]


async def _authenticate_for_model(request: ApiRequest, name: str, version: str) -> Client:
    client = await authenticate_request(request)
    check_model(get_service(request).settings.tiers, name, version, client)
    return client


async def _read_body(request: ApiRequest) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        problem = f"the body is compressed ({encoding[:MAX_ECHO]})"
        raise InvalidRequest(problem, allowed="a body that is not compressed")
    body = await request.body()
    if len(body) > parse_size(get_service(request).settings.max_body):
        message = "the body is larger than the server's setting max_body allows"
        raise ClientException(message, status_code=HTTP_413_REQUEST_ENTITY_TOO_LARGE)
    return body
