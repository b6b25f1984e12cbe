"""Engines that fail, each in its own way, installed as any package installs an engine: by an entry point.

Each runs the graph on onnxruntime and spoils what comes back.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.backends import ort
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus
from stillhouse.backends.signature import Signature

Results = list[Any]
Fault = Callable[[dict[str, Any], Results], Results]


@dataclass(frozen=True)
class FaultyBackend:
    name: str
    inject: Fault

    def open_graph(self, graph: Path, signature: Signature, options: RunnerOptions) -> Runner:
        runner = ort.open_graph(graph, signature, RunnerOptions())
        run = runner.run
        return replace(runner, backend=self.name, run=lambda feeds: self.inject(feeds, list(run(feeds))))

    def status(self) -> BackendStatus:
        return BackendStatus(self.name, "1.0", ("CPU",), ("f32",), None, "pip install faulty-backend")


def _nan(feeds: dict[str, Any], results: Results) -> Results:
    results[0] = np.full_like(results[0], np.nan)
    return results


def _noise(feeds: dict[str, Any], results: Results) -> Results:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(result.shape).astype(result.dtype) for result in results]


def _ones(feeds: dict[str, Any], results: Results) -> Results:
    """Right on inputs of nothing but ones, wrong on all others."""
    return results if all((array == 1).all() for array in feeds.values()) else [0.3 * result for result in results]


def _nan_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company."""
    return results if len(results[0]) < 8 else [np.full_like(result, np.nan) for result in results]


def _raise_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company, and silent in a large one."""
    if len(results[0]) >= 4:
        raise ValueError("no more than three at a time")
    return results


def _crash_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company, and gone in a large one."""
    return results if len(results[0]) < 4 else _crash(feeds, results)


def _hang(feeds: dict[str, Any], results: Results) -> Results:
    threading.Event().wait()
    return results


def _exhaust_memory(feeds: dict[str, Any], results: Results) -> Results:
    hoard = []
    while True:
        hoard.append(np.ones(1 << 24))  # 128 MiB, written to


def _crash(feeds: dict[str, Any], results: Results) -> Results:
    os.kill(os.getpid(), signal.SIGSEGV)
    return results


nan, noise, ones = FaultyBackend("nan", _nan), FaultyBackend("noise", _noise), FaultyBackend("ones", _ones)
large_batch_nan, large_batch_error, large_batch_crash = (
    FaultyBackend("large_batch_nan", _nan_in_large_batch),
    FaultyBackend("large_batch_error", _raise_in_large_batch),
    FaultyBackend("large_batch_crash", _crash_in_large_batch),
)
hang, memory_hog, crash = (
    FaultyBackend("hang", _hang),
    FaultyBackend("memory_hog", _exhaust_memory),
    FaultyBackend("crash", _crash),
)
