"""Check that all servers generate the same pixels: `python -m benchmarks.serving prove`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import stillhouse
from benchmarks.serving.launch import Leftovers
from benchmarks.serving.picture import request_picture
from benchmarks.serving.ways import SERVERS, STEPS, ServerVariant, start_server
from stillhouse.core import Picture
from stillhouse.errors import RuntimeMissing

PROMPT = "a small red circle left of a big blue square on a yellow background"
_TOGETHER = 6


def verify_pixels(names: Sequence[str]) -> bool:
    """Start each server, request images one by one and concurrently, and return whether all pixels and the shutdown are
    correct."""
    pipeline = stillhouse.load("shapes")
    requests = [(tier, seed, STEPS[tier]) for seed in range(_TOGETHER // 2) for tier in STEPS]
    expected = {request: pipeline.generate(PROMPT, seed=request[1], steps=request[2]).image for request in requests}
    is_correct = True
    for name in names:
        try:
            with start_server(name) as server, ThreadPoolExecutor(len(requests)) as pool:
                generate = partial(_request_picture, SERVERS[name], server.url)
                single = [np.array_equal(generate(request), expected[request]) for request in requests]
                pictures = list(pool.map(generate, requests))
                together = [
                    np.array_equal(image, expected[request]) for request, image in zip(requests, pictures, strict=True)
                ]
        except RuntimeMissing as error:
            print(f"{name:14} skipped: {error}")
            continue
        same = (
            f"{sum(single)} of {len(single)} alone and {sum(together)} of {len(together)} together are the same pixels"
        )
        print(f"{name:14} {same}; left behind: {_format_leftovers(server.leftovers)}")
        is_correct &= all([*single, *together]) and server.leftovers == Leftovers()
    return is_correct


def _request_picture(server: ServerVariant, url: str, request: tuple[str, int, int]) -> Picture:
    tier, seed, steps = request
    return request_picture(url, server.protocol, server.models[tier], PROMPT, seed, steps)


def _format_leftovers(leftovers: Leftovers) -> str:
    if leftovers == Leftovers():
        return "nothing"
    killed = ("it had to be killed",) if leftovers.was_killed else ()
    return ", ".join((*leftovers.processes, *leftovers.files, *killed))
