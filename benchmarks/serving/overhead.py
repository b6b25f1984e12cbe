"""Overhead of serving: `python -m benchmarks.serving overhead` writes results/serving_overhead.json.

Served and offline images alternate, each in a separate process. Then three common performance faults of image servers
are measured, see `traps`.
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
"""Largest median overhead of a served image in seconds."""
_SERVER = "slack"
_WARM_UP = 3
_RESAMPLES = 2000


def measure_overhead(rounds: int, results: str, log: Callable[[str], None]) -> Mapping[str, Any]:
    """Measure everything and write the results.

    Args:
        rounds: rounds of each pair.
        results: name of the results file.
        log: called with messages.
    """
    log("served and offline images")
    served = {tier: _measure_pair(tier, steps, rounds) for tier, steps in STEPS.items()}
    log("health checks during generation")
    traps: dict[str, Any] = {"blocking": measure_blocking()}
    log("validation and encoding")
    traps |= {"validation": measure_validation(), "encoding": measure_encoding()}
    document = {"rounds": rounds, "bar": BAR, "served": served, **traps}
    write_results(results, document)
    log(table(document))
    return document


def latency_difference(served: Sequence[float], offline: Sequence[float]) -> dict[str, float]:
    """Return the difference of two latencies in seconds, from runs in the same rounds.

    The result has the median of the differences with its 95 % bootstrap interval (Efron 1979) and the difference of the
    medians.
    """
    first, second = np.asarray(served), np.asarray(offline)
    resampled = np.random.default_rng(0).choice(first - second, size=(_RESAMPLES, len(first)))
    low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975))
    return {
        "value": float(np.median(first - second)),
        "low": float(low),
        "high": float(high),
        "medians": float(np.median(first) - np.median(second)),
    }


def _measure_pair(tier: str, steps: int, rounds: int) -> dict[str, Any]:
    with start_server(_SERVER) as server, OfflineProcess() as offline:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        turn = iter(range(10**9))

        def served() -> float:
            body = json.dumps({"model": tier, "prompt": PROMPT, "seed": next(turn) // 2, "steps": steps})
            began = perf_counter()
            connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            duration = perf_counter() - began
            assert response.status == 200, response.status
            return duration

        def generate_offline() -> float:
            return offline.measure(next(turn) // 2, steps)

        for _ in range(_WARM_UP):
            served()
            generate_offline()
        seconds = run_interleaved({"served": served, "offline": generate_offline}, rounds)
        connection.close()
    summaries = {name: asdict(summarise(duration)) for name, duration in seconds.items()}
    return {"steps": steps, **summaries, "difference": latency_difference(seconds["served"], seconds["offline"])}
