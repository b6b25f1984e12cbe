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
Spoil = Callable[[dict[str, Any], Results], Results]


@dataclass(frozen=True)
class Engine:
    name: str
    spoil: Spoil

    def open_graph(self, graph: Path, signature: Signature, options: RunnerOptions) -> Runner:
        runner = ort.open_graph(graph, signature, RunnerOptions())
        run = runner.run
        return replace(runner, backend=self.name, run=lambda feeds: self.spoil(feeds, list(run(feeds))))

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


def _crowd(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company."""
    return results if len(results[0]) < 8 else [np.full_like(result, np.nan) for result in results]


def _shy(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company, and silent in a large one."""
    if len(results[0]) >= 4:
        raise ValueError("no more than three at a time")
    return results


def _frail(feeds: dict[str, Any], results: Results) -> Results:
    """Right in a small company, and gone in a large one."""
    return results if len(results[0]) < 4 else _crash(feeds, results)


def _hang(feeds: dict[str, Any], results: Results) -> Results:
    threading.Event().wait()
    return results


def _hoard(feeds: dict[str, Any], results: Results) -> Results:
    hoard = []
    while True:
        hoard.append(np.ones(1 << 24))  # 128 MiB, written to


def _crash(feeds: dict[str, Any], results: Results) -> Results:
    os.kill(os.getpid(), signal.SIGSEGV)
    return results


nan, noise, ones = Engine("nan", _nan), Engine("noise", _noise), Engine("ones", _ones)
crowd, shy, frail = Engine("crowd", _crowd), Engine("shy", _shy), Engine("frail", _frail)
hang, hoard, crash = Engine("hang", _hang), Engine("hoard", _hoard), Engine("crash", _crash)
