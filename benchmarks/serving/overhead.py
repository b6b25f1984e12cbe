"""What serving costs: `python -m benchmarks.serving overhead` writes results/serving_overhead.json.

A picture through our server against the same picture without one, in turns, each in a process of its own; then three
ways in which servers of this kind waste their time, see `traps`.
"""

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.record import write_results
from benchmarks.serving.offline import PROMPT, OfflineProcess
from benchmarks.serving.tables import overhead_table as table
from benchmarks.serving.traps import measure_blocking, measure_encoding, measure_validation
from benchmarks.serving.ways import STEPS, start_server
from stillhouse.measure.clock import run_interleaved, summarise

BAR = 0.005
"""Seconds that a served picture may take more than the offline one, at the median."""
_SERVER = "slack"
_WARM_UP = 3
_RESAMPLES = 2000


def measure_overhead(rounds: int, results: str, tell: Callable[[str], None]) -> Mapping[str, Any]:
    """Measure everything and write it down.

    Args:
        rounds: of each pair.
        results: name of the file.
        tell: hears what is being done.
    """
    tell("a served picture against an offline one")
    served = {tier: _measure_pair(tier, steps, rounds) for tier, steps in STEPS.items()}
    tell("health while pictures are drawn")
    traps: dict[str, Any] = {"blocking": measure_blocking()}
    tell("validation, and encoding on the loop")
    traps |= {"validation": measure_validation(), "encoding": measure_encoding()}
    document = {"rounds": rounds, "bar": BAR, "served": served, **traps}
    write_results(results, document)
    tell(table(document))
    return document


def latency_difference(served: Sequence[float], offline: Sequence[float]) -> dict[str, float]:
    """Seconds by which the one takes longer, from runs taken in the same rounds.

    The median of the rounds' differences with its 95 % bootstrap interval (Efron 1979), and the difference of the
    medians.
    """
    one, other = np.asarray(served), np.asarray(offline)
    drawn = np.random.default_rng(0).choice(one - other, size=(_RESAMPLES, len(one)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {
        "value": float(np.median(one - other)),
        "low": float(low),
        "high": float(high),
        "medians": float(np.median(one) - np.median(other)),
    }


def _measure_pair(tier: str, steps: int, rounds: int) -> dict[str, Any]:
    with start_server(_SERVER) as server, OfflineProcess() as offline:
        door = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        turn = iter(range(10**9))

        def served() -> float:
            asked = json.dumps({"model": tier, "prompt": PROMPT, "seed": next(turn) // 2, "steps": steps})
            began = perf_counter()
            door.request("POST", "/v1/images/generations", asked, {"content-type": "application/json"})
            answer = door.getresponse()
            answer.read()
            taken = perf_counter() - began
            assert answer.status == 200, answer.status
            return taken

        def alone() -> float:
            return offline.measure(next(turn) // 2, steps)

        for _ in range(_WARM_UP):
            served()
            alone()
        seconds = run_interleaved({"served": served, "offline": alone}, rounds)
        door.close()
    told = {name: asdict(summarise(taken)) for name, taken in seconds.items()}
    return {"steps": steps, **told, "difference": latency_difference(seconds["served"], seconds["offline"])}
