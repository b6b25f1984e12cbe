"""The gRPC server, which runs in the same event loop as the HTTP server."""

from google.protobuf.descriptor_pool import DescriptorPool
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from stillhouse.errors import InvalidRequest
from stillhouse.serve.api import http
from stillhouse.serve.api.grpc.call import make_handler
from stillhouse.serve.api.grpc.health_service import HEALTH, INFERENCE, HealthServicer
from stillhouse.serve.api.grpc.inference_pb2 import DESCRIPTOR
from stillhouse.serve.api.grpc.servicer import InferenceServicer
from stillhouse.serve.api.grpc.stream import StreamServicer
from stillhouse.serve.service import Service
from stillhouse.units import parse_size

MAX_RESPONSE_BYTES = 2**31 - 1
"""Largest size of a response in bytes that gRPC supports."""


async def open_grpc(service: Service, host: str, port: int) -> tuple[aio.Server, int]:
    """Start a gRPC server in the running event loop, and return the server and the port that it listens on.

    Args:
        service: service behind the API; it must be open.
        host: IP address or host name to listen on.
        port: TCP port; 0 selects a free one.

    Raises:
        InvalidRequest: the address cannot be used.
    """
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", min(parse_size(service.settings.max_body), http.MAX_JSON_BODY)),
            ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
            # Port sharing is disabled, because otherwise two servers could listen on one port, and each would get some
            # of the calls.
            ("grpc.so_reuseport", 0),
        ]
    )
    methods = {**InferenceServicer(service).methods, "ModelStreamInfer": StreamServicer(service).infer}
    server.add_generic_rpc_handlers(
        [make_handler(INFERENCE, methods), make_handler(HEALTH, HealthServicer(service).methods)],
    )
    names = [INFERENCE.full_name, HEALTH.full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, _descriptor_pool())
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        await server.stop(None)
        fix = "choose another --grpc-port" if port else "choose another --host"
        raise InvalidRequest(f"{address} cannot be used as a listening address", fix=fix) from error
    await server.start()
    return server, bound


async def close_grpc(server: aio.Server, grace: float = 1.0) -> None:
    """Stop accepting calls, wait for running ones, and cancel those that do not finish within `grace` seconds."""
    await server.stop(grace)


def _descriptor_pool() -> DescriptorPool:
    """Return one pool with the descriptors of all services.

    The services are defined in different pools, but gRPC's server reflection reads a single one.
    """
    pool = DescriptorPool()
    for file in (DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return pool
