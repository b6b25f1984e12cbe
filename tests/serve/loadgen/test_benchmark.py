"""A complete load test of a fake server."""

import json
from dataclasses import replace

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.benchmark import LoadTest, run_benchmark
from stillhouse.serve.loadgen.isolated_latency import RUNS
from stillhouse.serve.loadgen.request_class import Flood, RequestClass
from tests.serve.loadgen.fake import PICTURE, FakeServer, ReceivedRequest, format_response
from tests.serve.loadgen.test_protocols import INPUTS

KINDS = (RequestClass("free", 0.8, "free", {"steps": 3}, 0.01), RequestClass("pro", 0.2, "pro", {"steps": 35}, 0.1))
QUICK = LoadTest("", KINDS, rate=400.0, count=60, seconds=None, prompts=("a circle",), clients=3)


def test_all_requests_are_answered_and_counted() -> None:
    with FakeServer() as server:
        report = run_benchmark(replace(QUICK, url=server.url))
    free, pro, everything = report.rows
    assert (free.request_class, pro.request_class, everything.sent) == ("free", "pro", 60)
    assert free.answered + pro.answered == everything.answered == 60
    assert everything.errors == {}
    assert [report.rate, report.load] == pytest.approx([400.0, 400.0 * 0.028])
    assert [free.latency_target, pro.latency_target] == pytest.approx([0.03, 0.3])
    test = [call.json_body for call in server.calls]
    assert [item["steps"] for item in test] == [{"free": 3, "pro": 35}[item["model"]] for item in test]
    assert len({call.address for call in server.calls}) == 3


def test_rate_follows_from_load_and_isolated_latency() -> None:
    with FakeServer() as server:
        report = run_benchmark(replace(QUICK, url=server.url, load=2.8, rate=None, count=5))
    assert [report.rate, report.load] == pytest.approx([100.0, 2.8])


def test_missing_isolated_latency_is_measured_first() -> None:
    classes = (replace(KINDS[0], isolated_seconds=None), KINDS[1])
    with FakeServer() as server:
        report = run_benchmark(replace(QUICK, url=server.url, classes=classes, count=5))
        assert len(server.calls) == 1 + RUNS + 5
    assert report.isolated_seconds["pro"] == 0.1
    assert 0 < report.isolated_seconds["free"] < 1


def test_flooding_client_has_its_own_key_and_address() -> None:
    with FakeServer() as server:
        flooded = replace(QUICK, url=server.url, clients=1, keys=("one", "two"), flood=Flood(4, 0.01, "pro"))
        report = run_benchmark(flooded)
    who = {(call.address, call.headers["authorization"]) for call in server.calls}
    assert who == {("127.1.0.1", "Bearer one"), ("127.1.0.2", "Bearer two")}
    assert {row.request_class: row.sent for row in report.rows}["pro, flood"] == 4


def refusing(call: ReceivedRequest) -> bytes:
    return format_response(429, b"too much") if call.json_body["model"] == "pro" else format_response(200, PICTURE)


def test_rejections_are_counted_by_status() -> None:
    with FakeServer(refusing) as server:
        report = run_benchmark(replace(QUICK, url=server.url))
    free, pro, _ = report.rows
    assert (free.rejected, pro.rejected, pro.answered) == (0, pro.sent, 0)
    assert report.error_bodies == {"429": "too much"}


def triton(call: ReceivedRequest) -> bytes:
    message: object = {"outputs": []}
    if call.method == "GET":
        message = {"name": "any", "extensions": ["binary_tensor_data"], "inputs": INPUTS}
    return format_response(200, json.dumps(message).encode())


def test_kserve_metadata_is_read_first() -> None:
    with FakeServer(triton) as server:
        report = run_benchmark(replace(QUICK, url=server.url, protocol="kserve"))
    assert report.rows[-1].answered == 60
    assert sorted(call.path for call in server.calls[:3]) == ["/v2", "/v2/models/free", "/v2/models/pro"]
    assert {call.path for call in server.calls[3:]} == {"/v2/models/free/infer", "/v2/models/pro/infer"}


def test_unreachable_server_and_invalid_parameters_are_errors() -> None:
    with FakeServer() as server:
        pass
    with pytest.raises(StillhouseError, match="cannot connect to"):
        run_benchmark(replace(QUICK, url=server.url, classes=(RequestClass("free", 1.0, "free"),)))
    with pytest.raises(StillhouseError, match="cannot connect to"):
        run_benchmark(replace(QUICK, url=server.url, protocol="kserve"))
    with pytest.raises(InvalidRequest, match="load"):
        replace(QUICK, rate=None, load=0.0)
    with pytest.raises(InvalidRequest, match="protocol"):
        replace(QUICK, protocol="soap")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="slo"):
        replace(QUICK, slo=0.5)
    with pytest.raises(InvalidRequest, match="timeout"):
        replace(QUICK, timeout=0.0)
