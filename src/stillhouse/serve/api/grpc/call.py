"""What all calls over gRPC share: who asks, how methods are reached, and how they tell no."""

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
"""gRPC's status by HTTP's; INTERNAL for all others."""
STATUS_BY_FINISH_REASON = {"expired": StatusCode.DEADLINE_EXCEEDED, "cancelled": StatusCode.CANCELLED}
"""gRPC's status of an accepted picture that ended so."""
MAX_MESSAGE_CHARS = 1000
"""Letters of a message. It travels in a header, and clients refuse long headers with everything else in them."""


class RpcError(NamedTuple):
    """An error as a client is told."""

    code: StatusCode
    message: str
    metadata: tuple[tuple[str, str], ...] = ()


async def authenticate_call(service: Service, context: Context) -> Client:
    """Who asks, by the metadata `authorization: Bearer KEY`.

    Raises:
        NotAllowed: a key is needed and there is none, or it is not known.
    """
    metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    scheme, _, token = metadata.get("authorization", "").partition(" ")
    return await service.authenticate(token.strip() if scheme.lower() == "bearer" else None, parse_peer(context.peer()))


def get_traceparent(context: Context) -> str | None:
    """The client's `traceparent` (W3C Trace Context), where it sent one."""
    for name, value in context.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str):
            return value
    return None


def parse_peer(peer: str) -> str:
    """The address in gRPC's name of a peer, as HTTP has it.

    >>> address_of("ipv4:127.0.0.1:54321"), address_of("ipv6:%5B::1%5D:54321")
    ('127.0.0.1', '::1')
    """
    _, _, place = unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]")


def to_rpc_error(error: Exception) -> RpcError:
    """How an error is told. Those that nobody expected are written to the log, and their message stays there."""
    if not isinstance(error, StillhouseError):
        log.error("an error of the server", exc_info=error)
        return RpcError(StatusCode.INTERNAL, "an error of the server; its log tells more")
    code = GRPC_STATUS.get(http_status(error), StatusCode.INTERNAL)
    if isinstance(error, RequestFailed):
        code = STATUS_BY_FINISH_REASON.get(error.error_type, code)
    message = str(error)
    message = message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."
    if isinstance(error, Refused):
        return RpcError(code, message, (("retry-after", str(max(1, math.ceil(error.retry_after)))),))
    return RpcError(code, message)


def abort_on_error(method: RpcMethod) -> RpcMethod:
    """The method, whose errors end the call with their status."""

    async def tried(asked: Any, context: Context) -> Any:
        try:
            return await method(asked, context)
        except Exception as error:
            problem = to_rpc_error(error)
        return await context.abort(*problem)

    return tried


def make_handler(service: ServiceDescriptor, methods: Mapping[str, RpcMethod]) -> "grpc.GenericRpcHandler[Any, Any]":
    """A service of these methods; those that it has beside them are answered UNIMPLEMENTED.

    A method of one request is given that, another an iterator of all. One of many answers writes them by itself.
    """
    handlers = {}
    for method in service.methods:
        if method.name not in methods:
            continue
        many_in, many_out = method.client_streaming, method.server_streaming
        handlers[method.name] = _HANDLERS[many_in, many_out](
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
