"""Three ways in which servers of pictures waste their time, measured on one that falls into them and on ours."""

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
from stillhouse.images.formats import encode_image
from stillhouse.measure.clock import paired_ratio, run_interleaved
from stillhouse.serve.api.openai import ImageGenerationRequest
from stillhouse.serve.loadgen.http_client import HttpRequest, HttpResponse, send_request
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.send import RequestResult, send_requests
from stillhouse.serve.loadgen.server_state import open_target

PICTURES = 8
"""That are drawn while health is asked for."""
SIZES = (64, 512, 1024)
"""Of the pictures that are encoded, in pixels."""
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
    """Seconds until a server says that it is well, asked every 20 ms while it draws eight pictures of 35 steps."""
    rows = []
    for name in ("fastapi-async", "fastapi-def", "slack"):
        way = SERVERS[name]
        with start_server(name) as server:
            answers = asyncio.run(_health_answers(server.url, name))
        seconds = [one.seconds for one in answers]
        p50, p99 = (float(value) for value in np.quantile(seconds, (0.5, 0.99)))
        row = {
            "server": name,
            "told": way.description,
            "asked": len(seconds),
            "p50": p50,
            "p99": p99,
            "most": max(seconds),
        }
        rows.append({**row, "unanswered": sum(not one.is_success for one in answers)})
    return rows


async def _health_answers(url: str, name: str) -> list[RequestResult]:
    """How the server answered while it drew."""
    way = SERVERS[name]
    pro = RequestClass("pro", 1.0, "pro", {"steps": STEPS["pro"]})
    door = await open_target(url, "openai", (pro,))
    began = perf_counter()
    await door.send(ScheduledRequest(0.0, pro, 0, "", "pro"))
    # Long enough for all of them, one after the other.
    length = PICTURES * (perf_counter() - began)
    pictures = [ScheduledRequest(0.0, pro, 0, str(number), "pro") for number in range(PICTURES)]
    health = RequestClass("health", 1.0, "health")
    looks = [ScheduledRequest(_EVERY * number, health, 1, "", "health") for number in range(1, int(length / _EVERY))]

    async def ask(shot: ScheduledRequest) -> HttpResponse:
        if shot.request_class is health:
            return await send_request(door.endpoint, HttpRequest("GET", way.ready), shot.client, 60.0)
        return await door.send(shot)

    return [one for one in await send_requests([*pictures, *looks], ask) if one.request.request_class is health]


def measure_validation(calls: int = 2000, rounds: int = 15) -> dict[str, Any]:
    """Microseconds to read one request out of its JSON, by pydantic and by msgspec."""
    body = json.dumps(_BODY).encode()
    seconds = run_interleaved(
        {
            "pydantic": lambda: _seconds_per_call(calls, lambda: PydanticGeneration.model_validate_json(body)),
            "msgspec": lambda: _seconds_per_call(calls, lambda: msgspec.json.decode(body, type=ImageGenerationRequest)),
        },
        rounds,
    )
    ratio = paired_ratio(seconds["pydantic"], seconds["msgspec"])
    return {**{name: 1e6 * median(taken) for name, taken in seconds.items()}, "ratio": asdict(ratio)}


def measure_encoding(runs: int = 7) -> list[dict[str, Any]]:
    """By size: seconds to encode one PNG, and how long a loop stands still where that is done on it, or beside it."""
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
    async def encoded() -> object:
        return encode_image(image, "png")

    return encoded


def _in_thread(image: Picture) -> Callable[[], Awaitable[object]]:
    async def encoded() -> object:
        with ThreadPoolExecutor(1) as pool:
            return await asyncio.get_running_loop().run_in_executor(pool, encode_image, image, "png")

    return encoded


async def _longest_pause(work: Callable[[], Awaitable[object]]) -> float:
    """The longest pause of a loop that has something to do every millisecond, while work is done."""
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
    """A picture that is as hard to compress as a photograph is: smooth, with some noise."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, size)
    smooth = (slope[:, None, None] + slope[None, :, None]) / 2 + np.array([0.0, 20.0, 40.0])
    noisy = smooth + rng.normal(0, 6, (size, size, 3))
    image: Picture = np.clip(noisy, 0, 255).astype(np.uint8)
    return image


def _seconds_per_call(calls: int, call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - began) / calls
