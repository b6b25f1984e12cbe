"""Faulty backends, installed like any other backend by an entry point.

Each runs the graph on onnxruntime and corrupts the results.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.backends import ort
from stillhouse.backends.backend import Backend
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus
from stillhouse.backends.signature import Signature

Results = list[Any]
Fault = Callable[[dict[str, Any], Results], Results]


def make_backend(name: str, inject: Fault) -> Backend:
    """Return a backend that runs a graph on onnxruntime and gives what `inject` makes of the results."""

    def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> Runner:
        runner = ort.open_graph(graph, signature, RunnerOptions())
        run = runner.run
        return replace(runner, backend=name, run=lambda feeds: inject(feeds, list(run(feeds))))

    install = "pip install faulty-backend"
    return Backend(name, open_graph, lambda: BackendStatus(name, "1.0", ("CPU",), ("f32",), None, install), install)


def _nan(feeds: dict[str, Any], results: Results) -> Results:
    results[0] = np.full_like(results[0], np.nan)
    return results


def _noise(feeds: dict[str, Any], results: Results) -> Results:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(result.shape).astype(result.dtype) for result in results]


def _ones(feeds: dict[str, Any], results: Results) -> Results:
    """Correct on inputs filled with ones, wrong on all others."""
    return results if all((array == 1).all() for array in feeds.values()) else [0.3 * result for result in results]


def _mix_rows(feeds: dict[str, Any], results: Results) -> Results:
    """Correct alone; in a batch every row is answered with the mean of all rows."""
    return [np.broadcast_to(result.mean(0, keepdims=True), result.shape).copy() for result in results]


def _noise_only(feeds: dict[str, Any], results: Results) -> Results:
    """Correct on Gaussian noise, as of random probes, wrong on everything else."""
    is_noise = all(abs(array.mean()) < 0.1 and abs(array.std() - 1) < 0.1 for array in feeds.values())
    return results if is_noise else [np.zeros_like(result) for result in results]


def _empty(feeds: dict[str, Any], results: Results) -> Results:
    """Finds nothing."""
    return [result[:, :0] for result in results]


def _nan_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Correct on small batches."""
    return results if len(results[0]) < 8 else [np.full_like(result, np.nan) for result in results]


def _raise_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Correct on small batches, raises on large ones."""
    if len(results[0]) >= 4:
        raise ValueError("no more than three at a time")
    return results


def _crash_in_large_batch(feeds: dict[str, Any], results: Results) -> Results:
    """Correct on small batches, crashes on large ones."""
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


nan = make_backend("nan", _nan)
noise = make_backend("noise", _noise)
ones = make_backend("ones", _ones)
mixed_rows = make_backend("mixed_rows", _mix_rows)
noise_only = make_backend("noise_only", _noise_only)
empty = make_backend("empty", _empty)
large_batch_nan = make_backend("large_batch_nan", _nan_in_large_batch)
large_batch_error = make_backend("large_batch_error", _raise_in_large_batch)
large_batch_crash = make_backend("large_batch_crash", _crash_in_large_batch)
hang = make_backend("hang", _hang)
memory_hog = make_backend("memory_hog", _exhaust_memory)
crash = make_backend("crash", _crash)
