"""Guarantees of the server, tested on real processes: no request is lost, duplicated or stuck."""

import base64
import http.client
import json
import os
import random
import re
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stillhouse.pipelines.load import load
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.store.api_keys import add_key
from stillhouse.serve.store.database import connect
from tests.serve.running import Running, running_server, start_server, wait_until

KINDS = ("application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain")
PROMPT = "a small red circle left of a big blue square"
SETTINGS = """
[tiers.free]
pipeline = "shapes"
steps = 3
max_lateness = 10000
[tiers.pro]
pipeline = "shapes"
steps = 35
max_lateness = 10000
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stillhouse.toml").write_text(SETTINGS, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def alone() -> NDArray[np.uint8]:
    return load("shapes").generate(PROMPT, seed=7, steps=3).image


def request_fields(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "model": "free", "seed": 7, **fields}


def draw(server: Running, **fields: Any) -> tuple[int, bytes]:
    return server.send("POST", "/v1/images/generations", request_fields(**fields))


def tried(server: Running) -> tuple[int, str | None]:
    """Send a request and return its status and Retry-After."""
    host = server.url.removeprefix("http://")
    connection_ = http.client.HTTPConnection(host, timeout=90)
    connection_.request(
        "POST", "/v1/images/generations", json.dumps(request_fields()), {"content-type": "application/json"}
    )
    answer = connection_.getresponse()
    answer.read()
    connection_.close()
    return answer.status, answer.getheader("retry-after")


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(base64.b64decode(json.loads(content)["data"][0]["b64_json"]))))


def counted(server: Running, name: str) -> float:
    """Return the sum of a counter over its labels."""
    text = server.get("/metrics")[1].decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"stillhouse_{name}[ {{]", line))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_requests_survive_random_worker_kills(folder: Path, alone: NDArray[np.uint8]) -> None:
    dice = random.Random(0)
    with running_server("--config", "stillhouse.toml", cwd=folder) as server, ThreadPoolExecutor(8) as pool:
        answers: list[Future[tuple[int, bytes]]] = []
        for _ in range(4):
            answers += [pool.submit(draw, server) for _ in range(6)]
            time.sleep(dice.uniform(0.0, 0.3))
            for worker in server.workers():
                os.kill(worker, signal.SIGKILL)
            # Nobody can tell a death in the very moment it happens; from when it is known on, it is told.
            wait_until(lambda: not server.is_ready())
            wait_until(server.is_ready)
        statuses = [answer.result()[0] for answer in answers]
        assert set(statuses) <= {200, 503}
        for answer in answers:
            status, content = answer.result()
            if status == 200:
                np.testing.assert_array_equal(pixels(content), alone)
        status, content = draw(server)
        assert status == 200 and counted(server, "worker_deaths_total") >= 3
        np.testing.assert_array_equal(pixels(content), alone)


def test_request_of_a_dead_worker_runs_again_with_the_same_pixels(folder: Path) -> None:
    with running_server("--config", "stillhouse.toml", cwd=folder) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(draw, server, model="pro", steps=100)
        wait_until(lambda: json.loads(server.get("/v1/state")[1])["running"] == 1)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not server.is_ready())
        began = time.monotonic()
        status, content = draw(server)
        assert status == 503 and time.monotonic() - began < 1.0
        assert b"no worker is ready" in content
        status, content = answer.result()
        assert status == 200
        np.testing.assert_array_equal(pixels(content), load("shapes").generate(PROMPT, seed=7, steps=100).image)


def test_accepted_jobs_survive_kill_and_run_once(folder: Path) -> None:
    names: list[str] = []
    completed, pipeline = 0, load("shapes")
    for round_ in range(3):
        with running_server("--config", "stillhouse.toml", cwd=folder) as server:
            for _ in range(8):
                status, content = server.send("POST", "/v1/jobs", request_fields(seed=len(names)))
                assert status == 202
                names.append(json.loads(content)["id"])
            workers = server.workers()
            if round_ < 2:
                wait_until(lambda: any(state(server, name) == "completed" for name in names[-8:]))
                server.process.kill()
                server.process.wait()
                wait_until(lambda workers=workers: not any(map(is_alive, workers)))
                connection = connect(folder / ServerSettings().data)
                (completed,) = connection.execute("select count(*) from jobs where state = 'completed'").fetchone()
                connection.close()
                continue
            wait_until(lambda: all(state(server, name) == "completed" for name in names))
            for seed, name in enumerate(names):
                status, content = server.get(f"/v1/jobs/{name}/image")
                assert status == 200
                expected = pipeline.generate(PROMPT, seed=seed, steps=3).image
                np.testing.assert_array_equal(np.array(Image.open(BytesIO(content))), expected)
            assert counted(server, "images_total") == len(names) - completed
            listed = [job["id"] for job in json.loads(server.get("/v1/jobs")[1])["data"]]
            assert sorted(listed) == sorted(names)


def state(server: Running, name: str) -> str:
    text: str = json.loads(server.get(f"/v1/jobs/{name}")[1])["state"]
    return text


def test_disconnect_cancels_the_request(folder: Path) -> None:
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(request_fields(model="pro", steps=150)).encode()
        lines = ("POST /v1/images/generations HTTP/1.1", "Host: x", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: json.loads(server.get("/v1/state")[1])["running"] == 1)
        wait_until(lambda: not json.loads(server.get("/v1/state")[1])["requests"])
        assert counted(server, "cancelled_total") == 1
        evaluations = counted(server, "step_seconds_count")
        assert draw(server)[0] == 200
        # Three evaluations of the second picture, and at most one that was under way when the first was cancelled.
        assert counted(server, "step_seconds_count") <= evaluations + 4


def test_disconnect_stores_the_image_if_configured(folder: Path) -> None:
    (folder / "stillhouse.toml").write_text(f'on_disconnect = "finish"\n{SETTINGS}', encoding="utf-8")
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(request_fields(stream=True, steps=150, model="pro")).encode()
        lines = ("POST /v1/images/generations HTTP/1.1", "Host: x", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            text = connection.recv(4096).decode()
        match = re.search(r"x-request-id: ([0-9a-f]+)", text)
        assert match is not None
        wait_until(lambda: server.get(f"/v1/jobs/{match[1]}/image")[0] == 200)
        picture = np.array(Image.open(BytesIO(server.get(f"/v1/jobs/{match[1]}/image")[1])))
        np.testing.assert_array_equal(picture, load("shapes").generate(PROMPT, seed=7, steps=150).image)
        assert counted(server, "cancelled_total") == 0
        assert server.get(f"/v1/images/{match[1]}")[0] == 404, "nobody asked for an address"
        assert draw(server)[0] == 200
        assert len(json.loads(server.get("/v1/jobs")[1])["data"]) == 1, "what was answered is not kept"


def test_cancelled_job_stops_within_one_step(folder: Path) -> None:
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        name = json.loads(server.send("POST", "/v1/jobs", request_fields(model="pro", steps=150))[1])["id"]
        wait_until(lambda: state(server, name) == "in_progress")
        status, content = server.send("DELETE", f"/v1/jobs/{name}")
        assert (status, json.loads(content)["state"]) == (200, "cancelled")
        done = counted(server, "step_seconds_count")
        assert json.loads(server.get("/v1/state")[1])["requests"] == []
        # Another picture is drawn meanwhile: had the cancelled one gone on, its evaluations would be counted, too.
        assert draw(server)[0] == 200
        assert counted(server, "step_seconds_count") <= done + 4
        assert server.get(f"/v1/jobs/{name}/image")[0] == 409


def test_sigterm_drains_the_server(folder: Path) -> None:
    with running_server("--config", "stillhouse.toml", cwd=folder) as server, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(draw, server, model="pro", steps=60) for _ in range(2)]
        wait_until(lambda: json.loads(server.get("/v1/state")[1])["running"] >= 1)
        workers = server.workers()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/health/ready")[0] == 503)
        status, content = draw(server)
        assert status == 503 and b"being shut down" in content
        assert [answer.result()[0] for answer in answers] == [200, 200]
        assert server.process.wait(30) == 0
        wait_until(lambda: not any(map(is_alive, workers)))


def test_worker_does_not_outlive_its_server(folder: Path) -> None:
    server = start_server("--config", "stillhouse.toml", cwd=folder)
    wait_until(server.workers)
    workers = server.workers()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(is_alive, workers)), 10.0)
    server.close()


def test_keys_are_required_and_never_logged(folder: Path) -> None:
    settings = f"keys = true\n{SETTINGS}"
    (folder / "stillhouse.toml").write_text(settings, encoding="utf-8")
    connection = connect(folder / "stillhouse-data")
    free, admin = add_key(connection, "free"), add_key(connection, "pro", is_admin=True)
    connection.close()
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:

        def status(key: str | None, method: str, path: str, body: object = None) -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return server.send(method, path, body, **headers)[0]

        path = "/v1/images/generations"
        assert status(None, "POST", path, request_fields()) == 401
        assert status(free + "x", "POST", path, request_fields()) == 401
        assert status(free, "POST", path, request_fields()) == 200
        assert status(free, "POST", path, request_fields(model="pro")) == 403
        assert status(admin, "POST", path, request_fields(model="pro", steps=3)) == 200
        name = json.loads(server.send("POST", "/v1/jobs", request_fields(), authorization=f"Bearer {admin}")[1])["id"]
        for method, place in (("GET", ""), ("GET", "/events"), ("GET", "/image"), ("DELETE", "")):
            assert status(free, method, f"/v1/jobs/{name}{place}") == 404
            assert status(None, method, f"/v1/jobs/{name}{place}") == 401
        assert json.loads(server.send("GET", "/v1/jobs", authorization=f"Bearer {free}")[1])["data"] == []
        theirs = json.loads(server.send("POST", "/v1/jobs", request_fields(), authorization=f"Bearer {free}")[1])["id"]
        listed = json.loads(server.send("GET", "/v1/jobs", authorization=f"Bearer {admin}")[1])["data"]
        assert {job["id"] for job in listed} == {name, theirs}, "an admin sees everybody's"
        assert status(admin, "DELETE", f"/v1/jobs/{theirs}") == 200
        log = json.dumps(server.log)
        assert "request finished" in log
        for key in (free, admin):
            assert key not in log and key.split("-", 2)[2] not in log
        assert PROMPT not in log
    for file in (folder / "stillhouse-data").rglob("*"):
        if file.is_file():
            assert free.split("-", 2)[2].encode() not in file.read_bytes()


def test_overload_is_rejected_with_retry_after(folder: Path) -> None:
    (folder / "stillhouse.toml").write_text(SETTINGS.replace("10000", "2"), encoding="utf-8")
    with running_server("--config", "stillhouse.toml", cwd=folder) as server, ThreadPoolExecutor(32) as pool:
        answers = [answer.result() for answer in [pool.submit(tried, server) for _ in range(200)]]
        statuses = [status for status, _ in answers]
        waits = [wait for _, wait in answers if wait is not None]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 10
        assert counted(server, "rejected_total") == statuses.count(429)
        assert all(int(text) >= 1 for text in waits) and len(waits) == statuses.count(429)
        refused = statuses.count(429)
        wait_until(lambda: sum(line.get("event") == "request rejected" for line in server.log) >= refused)
        assert {line["reason"] for line in server.log if "reason" in line} == {"deadline"}
        assert draw(server)[0] == 200


def test_malformed_requests_are_answered(folder: Path) -> None:
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        bodies = [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"x"',
            b'{"prompt": 1}',
            b"\xff\xfe",
            b'{"prompt": "\\ud800"}',
            b"[" * 9999,
        ]
        for path in ("/v1/images/generations", "/v1/jobs", "/v1/images/edits"):
            for body in bodies:
                for content_type in KINDS:
                    status, content = server.send("POST", path, body, content_type=content_type)
                    assert 400 <= status < 500, (path, body, content_type, status, content)
        for path in ("/v1/jobs/../../etc/passwd", "/v1/images/..%2f..%2fstillhouse.sqlite3", "/v1/jobs/%00", "/x"):
            assert server.get(path)[0] == 404
        host, port = server.url.removeprefix("http://").split(":")
        for raw in (b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/jobs HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(4096)
        assert draw(server)[0] == 200
        assert not [line for line in server.log if line.get("level") == "error"]
