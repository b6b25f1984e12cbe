"""The standard gRPC health service reports what `/health/ready` reports."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc


def test_grpc_health_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=name)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    unknown = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(unknown)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(unknown)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
