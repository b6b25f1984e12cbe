"""Shared parts of all gRPC calls: authentication, error status and method handlers."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio

from stillhouse.errors import Refused, StillhouseError
from stillhouse.serve.api.http import RequestFailed, http_status
from stillhouse.serve.client import Client
from stillhouse.serve.service import Service

log = logging.getLogger(__name__)

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
RpcMethod: TypeAlias = Callable[[Any, Context], Awaitable[Any]]

GRPC_STATUS = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
}
"""gRPC status of an error by its HTTP status; INTERNAL for all other HTTP statuses."""
STATUS_BY_FINISH_REASON = {"expired": StatusCode.DEADLINE_EXCEEDED, "cancelled": StatusCode.CANCELLED}
"""gRPC status of accepted requests that expired or were cancelled, by finish reason."""
MAX_MESSAGE_CHARS = 1000
"""Largest number of characters of an error message. The message is sent in a header, and clients reject long
headers."""


class RpcError(NamedTuple):
    """gRPC status, message and trailing metadata of an error."""

    code: StatusCode
    message: str
    metadata: tuple[tuple[str, str], ...] = ()


async def authenticate_call(service: Service, context: Context) -> Client:
    """Return the client that made a call. The metadata `authorization: Bearer KEY` identifies the client.

    If the server requires no API keys, the IP address identifies the client.

    Raises:
        NotAllowed: an API key is required, but is missing, unknown or revoked.
    """
    metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    scheme, _, token = metadata.get("authorization", "").partition(" ")
    address = parse_peer(context.peer())
    return await service.clients.authenticate(token.strip() if scheme.lower() == "bearer" else None, address)


def get_traceparent(context: Context) -> str | None:
    """Return the value of `traceparent` (W3C Trace Context) in the metadata of a call; None if it is absent."""
    for name, value in context.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str):
            return value
    return None


def parse_peer(peer: str) -> str:
    """Return the IP address in a gRPC peer name, in the form in which HTTP servers report addresses.

    >>> parse_peer("ipv4:127.0.0.1:54321"), parse_peer("ipv6:%5B::1%5D:54321")
    ('127.0.0.1', '::1')
    """
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")


def to_rpc_error(error: Exception) -> RpcError:
    """Return the gRPC status, message and metadata with which an error is answered.

    An unexpected error is logged; its own message is not sent to the client.
    """
    if not isinstance(error, StillhouseError):
        log.error("internal server error", exc_info=error)
        return RpcError(StatusCode.INTERNAL, "internal server error; see the server's log")
    code = GRPC_STATUS.get(http_status(error), StatusCode.INTERNAL)
    if isinstance(error, RequestFailed):
        code = STATUS_BY_FINISH_REASON.get(error.error_type, code)
    message = str(error)
    message = message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."
    if isinstance(error, Refused):
        return RpcError(code, message, (("retry-after", str(max(1, math.ceil(error.retry_after)))),))
    return RpcError(code, message)


def abort_on_error(method: RpcMethod) -> RpcMethod:
    """Wrap a gRPC method so that an error in it aborts the call with the gRPC status and message for this error."""

    async def wrapped(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except Exception as error:
            rpc_error = to_rpc_error(error)
        return await context.abort(*rpc_error)

    return wrapped


def make_handler(service: ServiceDescriptor, methods: Mapping[str, RpcMethod]) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return the gRPC handler of a service.

    Args:
        service: description of the service.
        methods: implementations by method name. An implementation takes the request (or an iterator of requests, if the
            client sends a stream) and the context. It returns the response, or writes a stream of responses to the
            context. Methods of the service that are not named here answer UNIMPLEMENTED.
    """
    handlers = {}
    for method in service.methods:
        if method.name not in methods:
            continue
        streams_in, streams_out = method.client_streaming, method.server_streaming
        handlers[method.name] = _HANDLERS[streams_in, streams_out](
            abort_on_error(methods[method.name]),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


_HANDLERS: Mapping[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
