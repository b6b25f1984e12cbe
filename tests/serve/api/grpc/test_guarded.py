"""gRPC on a server with keys: authentication, quotas and shutdown."""

import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from stillhouse.serve.store.api_keys import add_key
from stillhouse.serve.store.database import connect
from tests.serve.api.grpc.grpc_requests import LONG, inputs, is_idle, message, refusal
from tests.serve.running import PATIENCE, Running, running_server, wait_until

GUARDED = """
keys = true
max_body = "64KiB"
[tiers.free]
pipeline = "shapes"
steps = 3
max_lateness = 1000
[tiers.pro]
pipeline = "shapes"
max_lateness = 1000
"""


def test_keys_quotas_and_shutdown(tmp_path: Path) -> None:
    (tmp_path / "stillhouse.toml").write_text(GUARDED, encoding="utf-8")
    connection = connect(tmp_path / "stillhouse-data")
    one_picture = 64 * 64 * 3
    free, pro = add_key(connection, "free", rate=1.0, burst=one_picture), add_key(connection, "pro")
    connection.close()
    with (
        running_server("--config", "stillhouse.toml", cwd=tmp_path) as server,
        grpc.insecure_channel(str(server.grpc)) as wire,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(wire)
        _check_keys(client, stub, free, pro)
        _check_size(server, client, pro)
        _check_quota(stub, free)
        _check_draining(server, wire, stub, pro)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _check_keys(client: triton.InferenceServerClient, stub: Any, free: str, pro: str) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("free")
    for headers in ({}, _bearer("still-nobody-knows"), {"authorization": f"Basic {free}"}):
        assert refusal(client, headers=headers)[0] == "UNAUTHENTICATED"
    status, reason = refusal(client, "pro", headers=_bearer(free))
    assert status == "PERMISSION_DENIED" and "allowed: free" in reason
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        client.get_model_metadata("free")
    assert [response.name for response in client.get_model_repository_index(headers=_bearer(pro)).models] == ["pro"]
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ModelStreamInfer(iter([message()])))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def _check_size(server: Running, client: triton.InferenceServerClient, key: str) -> None:
    assert refusal(client, inputs=inputs(PROMPT="a" * 65536), headers=_bearer(key))[0] == "RESOURCE_EXHAUSTED"
    assert server.send("POST", "/v2/models/pro/infer", b" " * 65537)[0] == 401
    assert server.send("POST", "/v2/models/pro/infer", b" " * 65537, **_bearer(key))[0] == 413


def _check_quota(stub: Any, key: str) -> None:
    metadata = list(_bearer(key).items())
    stub.ModelInfer(message(), metadata=metadata)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message(), metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers: Any = caught.value.trailing_metadata()
    assert 1 < int(dict(trailers)["retry-after"]) <= 64 * 64 * 3 and "come back in" in str(caught.value.details())


def _check_draining(server: Running, wire: grpc.Channel, stub: Any, key: str) -> None:
    """Started requests finish, new ones are rejected, and health reports it before the socket is closed."""
    metadata = list(_bearer(key).items())
    watch = health_pb2_grpc.HealthStub(wire).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    begun = stub.ModelInfer.future(message("pro", **LONG), metadata=metadata)
    wait_until(lambda: not is_idle(server, **_bearer(key)))
    server.process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message("pro"), metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert begun.result().outputs[0].name == "IMAGE"
    watch.cancel()
    assert server.process.wait(PATIENCE) == 0
