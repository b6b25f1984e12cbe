"""`stillhouse bench-serve` against a fake server."""

import json
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.cli.bench_serve import format_load_report
from stillhouse.serve.loadgen.load_report import LoadReport, LoadReportRow
from tests.cli.conftest import Refused
from tests.serve.loadgen.fake import PICTURE, FakeServer, format_response

KINDS = ("--class", "free=0.8:steps=3:isolated=0.5", "--class", "pro=0.2:steps=35:isolated=5")


def test_the_table_has_a_line_for_each_kind_and_the_file_every_figure(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--rate", "200", "--count", "40", "--flood", "3@0.05:pro", "--json", "load.json")
    with FakeServer() as server:
        assert main(["bench-serve", "--url", server.url, *KINDS, *few]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{server.url}: 200 requests per second, ")
    assert "isolated latency: free 500 ms, pro 5.00 s; in time: answered within 3 times that" in output
    assert [line.split("  ")[0] for line in output.splitlines()[3:8]] == ["class", "free", "pro", "pro, flood", "all"]
    report = json.loads((here / "load.json").read_text())
    assert report["isolated_seconds"] == {"free": 0.5, "pro": 5.0}
    assert report["rows"][-1]["sent"] == report["rows"][-1]["answered"] == 43
    assert report["rows"][-1]["goodput"] == 1.0
    assert {"send_delay_mean", "send_delay_max", "cpu_share", "warnings"} <= report.keys()


def test_the_default_kinds_are_the_default_servers_and_their_seconds_are_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FakeServer() as server:
        assert main(["bench-serve", "--url", server.url, "--rate", "200", "--count", "5"]) == 0
        assert {call.json_body["model"] for call in server.calls} == {"free", "pro"}


def test_a_server_that_answers_nobody_is_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda call: format_response(503, b"the queue is full")) as server:
        assert main(["bench-serve", "--url", server.url, *KINDS, "--rate", "200", "--count", "5"]) == 1
    assert "response 503: the queue is full" in capsys.readouterr().out


def test_doubts_and_what_is_not_known_are_told() -> None:
    row = LoadReportRow("all", 2, 0, 1, {"503": 1, "cut off": 1}, None, None, None, None, None, 0.0, 0.0)
    report = LoadReport(
        "http://here", "openai", 2.0, 0.5, {"free": 0.05}, 9.0, (row,), {}, 0.02, 0.5, 0.01, ("it was late",)
    )
    lines = format_load_report(report, 3.0).splitlines()
    assert lines[4].split() == [
        "all",
        "2",
        "0",
        "1",
        "-",
        "-",
        "-",
        "-",
        "0.0%",
        "0.00",
        "503:",
        "1,",
        "cut",
        "off:",
        "1",
    ]
    assert lines[-2:] == [
        "sent 20.0 ms late on average, 500 ms at most; sending took 1.0% of a core",
        "warning: it was late",
    ]


def test_mistakes_are_explained(refused: Refused) -> None:
    assert "NAME=SHARE" in refused("bench-serve", "--class", "free")
    assert "no field of a class 'stepp'" in refused("bench-serve", "--class", "free=1:stepp=3")
    assert "N@SECONDS:CLASS" in refused("bench-serve", "--flood", "many")
    assert "sum of all shares" in refused("bench-serve", "--class", "free=0.5")
    assert "no class 'gold'" in refused("bench-serve", "--flood", "3@1:gold")
    assert "not allowed with" in refused("bench-serve", "--load", "0.5", "--rate", "3")
    assert "http://HOST:PORT" in refused("bench-serve", "--url", "localhost")
    assert "up to" not in refused("bench-serve", "--rate", "1e9")
    with FakeServer(lambda call: format_response(200, PICTURE)) as server:
        pass
    assert "cannot connect to" in refused("bench-serve", "--url", server.url)
