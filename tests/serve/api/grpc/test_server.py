"""The gRPC server: ports and reflection."""

import asyncio
import gc
import socket
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.api.grpc.server import close_grpc, open_grpc
from tests.serve.api.grpc.grpc_requests import PROMPT, message

SERVICE: Any = SimpleNamespace(settings=SimpleNamespace(max_body="1MiB"), dispatcher=SimpleNamespace(is_ready=False))


def test_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            InvalidRequest, match=f"127.0.0.1:{port} cannot be used as a listening address; choose another --grpc-port"
        ):
            asyncio.run(open_grpc(SERVICE, "127.0.0.1", port))
    gc.collect()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_port_0_selects_a_free_port(host: str) -> None:
    async def reached() -> bool:
        server, port = await open_grpc(SERVICE, host, 0)
        try:
            async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                await asyncio.wait_for(channel.channel_ready(), 30)
        finally:
            await close_grpc(server)
        return port > 0

    assert asyncio.run(reached())


def test_reflection_suffices_to_generate(channel: grpc.Channel, pipeline: Pipeline) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    names = {"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(database.get_services()) == names
    pool = DescriptorPool(database)
    assert all(pool.FindServiceByName(name) for name in names)
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    request = GetMessageClass(method.input_type).FromString(message(SEED=7).SerializeToString())
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda problem: problem.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    image = np.frombuffer(call(request).raw_output_contents[0], np.uint8).reshape(64, 64, 3)
    np.testing.assert_array_equal(image, pipeline.generate(PROMPT, seed=7, steps=3).image)
