"""Three performance faults of image servers, measured on a server that has them and on ours."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from benchmarks.serving.rival import FastApiGeneration as PydanticGeneration
from benchmarks.serving.ways import SERVERS, STEPS, start_server
from stillhouse.core import Picture
from stillhouse.images.files import encode_image
from stillhouse.measure.clock import paired_ratio, run_interleaved
from stillhouse.serve.api.openai import ImageGenerationRequest
from stillhouse.serve.loadgen.http_client import HttpRequest, HttpResponse, send_request
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.send import RequestResult, send_requests
from stillhouse.serve.loadgen.server_state import open_target

PICTURES = 8
"""Number of images generated during the health checks."""
SIZES = (64, 512, 1024)
"""Sizes of encoded images in pixels."""
_EVERY = 0.02
_BODY = {
    "prompt": "a small red circle left of a big blue square on a yellow background",
    "model": "pro",
    "n": 1,
    "size": "64x64",
    "seed": 7,
    "steps": 35,
    "guidance": 2.0,
}


def measure_blocking() -> list[dict[str, Any]]:
    """Measure the latency of health checks every 20 ms while eight images of 35 steps are generated."""
    rows = []
    for name in ("fastapi-async", "fastapi-def", "slack"):
        variant = SERVERS[name]
        with start_server(name) as server:
            results = asyncio.run(_health_answers(server.url, name))
        seconds = [result.seconds for result in results]
        p50, p99 = (float(value) for value in np.quantile(seconds, (0.5, 0.99)))
        row = {
            "server": name,
            "description": variant.description,
            "requests": len(seconds),
            "p50": p50,
            "p99": p99,
            "max": max(seconds),
        }
        rows.append({**row, "unanswered": sum(not result.is_success for result in results)})
    return rows


async def _health_answers(url: str, name: str) -> list[RequestResult]:
    """Return the results of the health checks."""
    variant = SERVERS[name]
    pro = RequestClass("pro", 1.0, "pro", {"steps": STEPS["pro"]})
    target = await open_target(url, "openai", (pro,))
    began = perf_counter()
    await target.send(ScheduledRequest(0.0, pro, 0, "", "pro"))
    # Long enough for all images in sequence.
    length = PICTURES * (perf_counter() - began)
    pictures = [ScheduledRequest(0.0, pro, 0, str(number), "pro") for number in range(PICTURES)]
    health = RequestClass("health", 1.0, "health")
    checks = [ScheduledRequest(_EVERY * number, health, 1, "", "health") for number in range(1, int(length / _EVERY))]

    async def ask(request: ScheduledRequest) -> HttpResponse:
        if request.request_class is health:
            return await send_request(target.endpoint, HttpRequest("GET", variant.ready), request.client, 60.0)
        return await target.send(request)

    return [
        result for result in await send_requests([*pictures, *checks], ask) if result.request.request_class is health
    ]


def measure_validation(calls: int = 2000, rounds: int = 15) -> dict[str, Any]:
    """Measure the microseconds to decode one JSON request by pydantic and by msgspec."""
    body = json.dumps(_BODY).encode()
    seconds = run_interleaved(
        {
            "pydantic": lambda: _seconds_per_call(calls, lambda: PydanticGeneration.model_validate_json(body)),
            "msgspec": lambda: _seconds_per_call(calls, lambda: msgspec.json.decode(body, type=ImageGenerationRequest)),
        },
        rounds,
    )
    ratio = paired_ratio(seconds["pydantic"], seconds["msgspec"])
    return {**{name: 1e6 * median(durations) for name, durations in seconds.items()}, "ratio": asdict(ratio)}


def measure_encoding(runs: int = 7) -> list[dict[str, Any]]:
    """Measure the seconds to encode one image by size, and the longest pause of the event loop.

    Encoding runs on the event loop and in a thread.
    """
    rows = []
    for size in SIZES:
        image = _photo(size)
        rows.append(
            {
                "size": size,
                "png": median(_seconds_per_call(1, partial(encode_image, image, "png")) for _ in range(runs)),
                "jpeg": median(_seconds_per_call(1, partial(encode_image, image, "jpeg")) for _ in range(runs)),
                "on_loop": median(asyncio.run(_longest_pause(_on_loop(image))) for _ in range(runs)),
                "in_thread": median(asyncio.run(_longest_pause(_in_thread(image))) for _ in range(runs)),
            }
        )
    return rows


def _on_loop(image: Picture) -> Callable[[], Awaitable[object]]:
    async def encode() -> object:
        return encode_image(image, "png")

    return encode


def _in_thread(image: Picture) -> Callable[[], Awaitable[object]]:
    async def encode() -> object:
        with ThreadPoolExecutor(1) as pool:
            return await asyncio.get_running_loop().run_in_executor(pool, encode_image, image, "png")

    return encode


async def _longest_pause(work: Callable[[], Awaitable[object]]) -> float:
    """Return the longest pause in seconds of an event loop with a task every millisecond, while `work` runs."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = perf_counter()
            longest = max(longest, now - last - 0.001)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest = 0.0
    await work()
    await asyncio.sleep(0.005)
    ticking.cancel()
    return longest


def _photo(size: int) -> Picture:
    """Return an image that compresses like a photograph: smooth with noise."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, size)
    smooth = (slope[:, None, None] + slope[None, :, None]) / 2 + np.array([0.0, 20.0, 40.0])
    noisy = smooth + rng.normal(0, 6, (size, size, 3))
    image: Picture = np.clip(noisy, 0, 255).astype(np.uint8)
    return image


def _seconds_per_call(calls: int, call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - began) / calls
