"""Served pictures a second: `python -m benchmarks.serving rate` writes results/serving_rate.json.

Clients ask a server for pictures of 3 steps, each for the next one when it has the last. The server of an earlier
commit and those of this tree run at once and take turns, because a machine's speed drifts within minutes.
"""

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.grid import markdown_table
from benchmarks.record import write_results
from benchmarks.serving.launch import RunningServer, free_port, run_server
from benchmarks.serving.offline import PROMPT
from benchmarks.serving.triton.environment import ROOT
from benchmarks.serving.ways import serve_command
from benchmarks.yardstick.trees import baseline_tree
from stillhouse.measure.clock import paired_ratio
from stillhouse.serve.loadgen.send import ProgressCallback

AGAINST = "55537d9"
"""The commit before networks were chosen by measurement and the layers of large networks were rewritten."""
CLIENTS = (1, 2, 4, 8, 16)
TURN_SECONDS = 2.5
_WARM_UP_SECONDS = 1.0
_MODEL = "shapes-3"
_HEAD = ("clients", "server", "pictures a second", "median", "95 %", "rate, against the earlier commit")


@dataclass(frozen=True, slots=True)
class ServedTree:
    """A server of the comparison.

    Args:
        description: name in tables.
        directory: root of the tree of this project.
        settings: further lines of its settings file.
    """

    description: str
    directory: Path
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a server did in one turn.

    Args:
        rate: pictures a second.
        latencies: seconds of each picture.
    """

    rate: float
    latencies: Sequence[float]


def measure_rates(
    rounds: int, against: str, results: str, log: Callable[[str], None], on_progress: ProgressCallback
) -> Mapping[str, Any]:
    """Measure all servers with all numbers of clients, and write the results.

    Args:
        rounds: turns of each server with each number of clients.
        against: the earlier commit.
        results: name of the results file.
        log: called with messages.
        on_progress: called with a description, the completed amount and the total.
    """
    earlier = baseline_tree(against)
    trees = (
        ServedTree(_earlier_name(earlier.name), earlier.directory),
        ServedTree("this tree", ROOT),
        ServedTree("this tree, two workers", ROOT, "workers = 2\n"),
    )
    rows = []
    with ExitStack() as stack:
        servers = [stack.enter_context(_start(tree, stack)) for tree in trees]
        for number, clients in enumerate(CLIENTS):
            for server in servers:
                run_clients(server.url, clients, _WARM_UP_SECONDS)
            turns: list[list[Turn]] = [[] for _ in servers]
            for turn in range(rounds):
                on_progress("rounds", number * rounds + turn, len(CLIENTS) * rounds)
                for server, measured in zip(servers, turns, strict=True):
                    measured.append(run_clients(server.url, clients, TURN_SECONDS))
            rows += [_row(clients, tree, measured, turns[0]) for tree, measured in zip(trees, turns, strict=True)]
    document = {"rounds": rounds, "against": earlier.name, "rows": rows}
    write_results(results, document)
    log(rate_table(document))
    return document


def rate_table(results: Mapping[str, Any]) -> str:
    """Return the comparison for a document."""
    earlier = _earlier_name(results["against"])
    return markdown_table(_HEAD, [_cells(row, row["server"] == earlier) for row in results["rows"]])


def run_clients(url: str, clients: int, seconds: float) -> Turn:
    """Ask a server for pictures by so many clients, each with a connection of its own, for so many seconds.

    Raises:
        RuntimeError: a request was not answered with a picture.
    """
    latencies: list[float] = []
    errors: list[str] = []
    began = perf_counter()
    ask = partial(_ask, urlsplit(url).netloc, began + seconds, latencies, errors)
    threads = [Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(errors[0])
    return Turn(len(latencies) / (perf_counter() - began), latencies)


def _ask(host: str, until: float, latencies: list[float], errors: list[str], client: int) -> None:
    connection = http.client.HTTPConnection(host, timeout=120)
    try:
        for seed in count(client << 32):
            sent = perf_counter()
            if sent >= until:
                return
            body = json.dumps({"model": "free", "prompt": PROMPT, "seed": seed})
            connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                errors.append(f"the server answered {response.status}: {content[:300]!r}")
                return
            latencies.append(perf_counter() - sent)
    except OSError as error:
        errors.append(str(error))
    finally:
        connection.close()


def _start(tree: ServedTree, stack: ExitStack) -> AbstractContextManager[RunningServer]:
    folder = ROOT / "build" / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Path(stack.enter_context(TemporaryDirectory(prefix="rate-", dir=folder)))
    port, top = free_port(), f'data = "data"\nmax_queue = 1000\n{tree.settings}'
    settings = f'{top}[tiers.free]\npipeline = "{_MODEL}"\nmax_lateness = inf\n'
    command = serve_command(settings, port, workspace, tree.directory)
    return run_server(command, port, "/health/ready", workspace / "server.log")


def _row(clients: int, tree: ServedTree, turns: Sequence[Turn], earlier: Sequence[Turn]) -> dict[str, Any]:
    latencies = np.concatenate([turn.latencies for turn in turns])
    ratio = paired_ratio([1 / turn.rate for turn in earlier], [1 / turn.rate for turn in turns])
    return {
        "clients": clients,
        "server": tree.description,
        "rate": median(turn.rate for turn in turns),
        "p50": float(np.quantile(latencies, 0.5)),
        "p95": float(np.quantile(latencies, 0.95)),
        "ratio": asdict(ratio),
    }


def _earlier_name(commit: str) -> str:
    return f"commit {commit}"


def _cells(row: Mapping[str, Any], is_earlier: bool) -> list[str]:
    ratio = "{value:.2f}x ({low:.2f} to {high:.2f})".format(**row["ratio"])
    return [
        str(row["clients"]),
        row["server"],
        f"{row['rate']:.1f}",
        f"{1000 * row['p50']:.0f} ms",
        f"{1000 * row['p95']:.0f} ms",
        "1" if is_earlier else ratio,
    ]
