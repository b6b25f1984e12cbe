"""Triton's client and raw gRPC calls to the shared server."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from tests.serve.running import Running


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    assert server.grpc
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)
