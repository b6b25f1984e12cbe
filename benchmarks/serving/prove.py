"""That all servers draw the same picture: `python -m benchmarks.serving prove`."""

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
    """Start each, ask for pictures one by one and many at once, stop it; whether all was as it should be."""
    pipeline = stillhouse.load("shapes")
    asked = [(tier, seed, STEPS[tier]) for seed in range(_TOGETHER // 2) for tier in STEPS]
    wanted = {one: pipeline.generate(PROMPT, seed=one[1], steps=one[2]).image for one in asked}
    is_well = True
    for name in names:
        try:
            with start_server(name) as server, ThreadPoolExecutor(len(asked)) as pool:
                drawn = partial(_request_picture, SERVERS[name], server.url)
                single = [np.array_equal(drawn(one), wanted[one]) for one in asked]
                pictures = list(pool.map(drawn, asked))
                together = [np.array_equal(got, wanted[one]) for one, got in zip(asked, pictures, strict=True)]
        except RuntimeMissing as error:
            print(f"{name:14} skipped: {error}")
            continue
        same = (
            f"{sum(single)} of {len(single)} alone and {sum(together)} of {len(together)} together are the same pixels"
        )
        print(f"{name:14} {same}; left behind: {_format_leftovers(server.leftovers)}")
        is_well &= all([*single, *together]) and server.leftovers == Leftovers()
    return is_well


def _request_picture(server: ServerVariant, url: str, request: tuple[str, int, int]) -> Picture:
    tier, seed, steps = request
    return request_picture(url, server.protocol, server.models[tier], PROMPT, seed, steps)


def _format_leftovers(left: Leftovers) -> str:
    if left == Leftovers():
        return "nothing"
    killed = ("it had to be killed",) if left.was_killed else ()
    return ", ".join((*left.processes, *left.files, *killed))
