"""Soak test: ten thousand requests, and a minute of triple load."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from stillhouse.measure.memory import resident_bytes
from tests.serve.running import Running, running_server

pytestmark = pytest.mark.large

REQUESTS = 10_000
SETTINGS = '[tiers.free]\npipeline = "shapes"\nsteps = 1\nmax_lateness = {max_lateness}\n'
ASKED = {"prompt": "a red circle", "steps": 1, "guidance": 1.0}
MEGABYTE = 1 << 20


def ask(server: Running, number: int) -> int:
    """Send request `number`: every sixteenth is a job, every fourth is invalid."""
    if number % 16 == 0:
        return server.send("POST", "/v1/jobs", {**ASKED, "seed": number})[0]
    fields: dict[str, Any] = {**ASKED, "seed": number, **({"steps": 0} if number % 4 == 0 else {})}
    return server.send("POST", "/v1/images/generations", fields)[0]


def used(server: Running) -> dict[str, int]:
    folder = Path(f"/proc/{server.process.pid}")
    return {
        "bytes": resident_bytes(server.process.pid),
        "descriptors": len(list((folder / "fd").iterdir())),
        "threads": len(list((folder / "task").iterdir())),
    }


def test_ten_thousand_requests_leak_nothing(tmp_path: Path) -> None:
    (tmp_path / "stillhouse.toml").write_text('keep_bytes = "1MiB"\n' + SETTINGS.format(max_lateness=1000))
    looks: list[dict[str, int]] = []
    with running_server("--config", "stillhouse.toml", cwd=tmp_path) as server, ThreadPoolExecutor(4) as pool:
        for part in range(10):
            numbers = range(part * REQUESTS // 10, (part + 1) * REQUESTS // 10)
            statuses = set(pool.map(lambda number: ask(server, number), numbers))
            assert statuses <= {200, 202, 400}
            looks.append(used(server))
    print(json.dumps(looks))
    after = looks[2:]
    slope = np.polyfit(np.arange(len(after)), [look["bytes"] for look in after], 1)[0]
    assert slope < MEGABYTE, f"{slope / MEGABYTE:.2f} MB in a thousand requests"
    assert after[-1]["descriptors"] <= after[0]["descriptors"] + 4
    assert after[-1]["threads"] <= after[0]["threads"] + 2


def test_goodput_at_triple_load_is_nine_tenths_of_the_best(tmp_path: Path) -> None:
    """Measure the best goodput before and after, because the machine's speed drifts by a quarter within minutes.

    The latency target follows from the current isolated latency.
    """
    (tmp_path / "stillhouse.toml").write_text(SETTINGS.format(max_lateness=1).replace("steps = 1", "steps = 8"))
    with running_server("--config", "stillhouse.toml", cwd=tmp_path) as server:
        before = {load: served(server, load, 15.0, alone(server)) for load in (0.7, 0.9, 1.0)}
        load = max(before, key=lambda load: before[load])
        least = used(server)
        now = alone(server)
        under = served(server, 3.0, 60.0, now)
        after = served(server, load, 30.0, alone(server))
        print(json.dumps({"before": before, "under": under, "after": after, "alone": now}))
        assert under >= 0.9 * (before[load] + after) / 2
        assert used(server)["bytes"] < least["bytes"] + 64 * MEGABYTE


def alone(server: Running) -> float:
    """Return the isolated latency in seconds, as bench-serve measures it."""
    return median(seconds(server)[1] for _ in range(10))


def seconds(server: Running) -> tuple[int, float]:
    began = time.monotonic()
    status, _ = server.send("POST", "/v1/images/generations", {"prompt": "a red circle", "seed": 7})
    return status, time.monotonic() - began


def served(server: Running, load: float, length: float, alone: float) -> float:
    """Return the goodput within three times the isolated latency, relative to sequential throughput."""
    lock, in_time = threading.Lock(), 0

    def send_at(at: float) -> None:
        nonlocal in_time
        time.sleep(max(0.0, at - time.monotonic()))
        status, duration = seconds(server)
        with lock:
            in_time += status == 200 and duration <= 3 * alone

    dice = np.random.default_rng(0)
    moments = time.monotonic() + np.cumsum(dice.exponential(alone / load, int(load * length / alone)))
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(send_at, moments))
    return in_time * alone / length
