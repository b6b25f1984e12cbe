"""Jobs API: events, idempotency, and no access to URLs or paths of clients."""

import json

from tests.serve.running import Running, wait_until

ASKED = {"prompt": "a small red circle", "model": "free", "seed": 7}


def submitted(server: Running, **headers: str) -> str:
    status, content = server.send("POST", "/v1/jobs", ASKED, **headers)
    assert status == 202
    name: str = json.loads(content)["id"]
    return name


def test_job_events_end_with_done(server: Running) -> None:
    name = submitted(server)
    lines = server.get(f"/v1/jobs/{name}/events")[1].decode().splitlines()
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events[-1] == "done" and set(events) <= {"progress", "done"}
    body = json.loads(next(line for line in reversed(lines) if line.startswith("data: ")).removeprefix("data: "))
    assert (body["id"], body["state"], body["image_url"]) == (name, "completed", f"/v1/jobs/{name}/image")
    again = server.get(f"/v1/jobs/{name}/events")[1].decode()
    assert again.count("event: ") == 1 and "event: done" in again, "one that is over ends at once"


def test_idempotency_key_returns_the_same_job(server: Running) -> None:
    first, second = (submitted(server, Idempotency_Key="once") for _ in range(2))
    assert first == second != submitted(server, Idempotency_Key="twice")


def test_no_url_or_path_of_a_client_is_opened(server: Running) -> None:
    """A URL or path is refused because it is not base64; nothing is fetched."""
    for address in ("http://127.0.0.1:9/picture.png", "file:///etc/passwd", "/etc/passwd"):
        status, content = server.send("POST", "/v1/jobs", {**ASKED, "image": address})
        assert status == 400 and b"passwd" not in content.replace(address.encode(), b"")


def test_deleted_image_is_not_found(server: Running) -> None:
    name = submitted(server)
    wait_until(lambda: json.loads(server.get(f"/v1/jobs/{name}")[1])["state"] == "completed")
    (picture,) = server.data.glob(f"images/{name}.*")
    picture.unlink()
    assert server.get(f"/v1/jobs/{name}/image")[0] == 404


def test_metric_names(server: Running) -> None:
    assert server.send("POST", "/v1/images/generations", ASKED)[0] == 200, "a picture that somebody waited for"
    body = server.get("/metrics")[1].decode()
    for name in (
        "requests_running", "requests_waiting", "queue_seconds_bucket", "denoise_seconds_bucket", "step_seconds_bucket",
        "batch_rows_bucket", "work_pending_seconds", "goodput_ratio", "images_total", "images_in_time_total",
        "pixel_steps_total", "ready", "worker_deaths_total",
    ):  # fmt: skip
        assert f"\nstillhouse_{name}" in body, name
