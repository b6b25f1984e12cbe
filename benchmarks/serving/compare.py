"""Comparison of servers under the same requests: `python -m benchmarks.serving` writes results/serving.json.

Four of five requests take 3 steps, the others 35. The speed of a machine drifts within minutes by more than servers
differ, and near full load a small change of speed changes the waiting time a lot. Therefore all servers of a trace run
at once and take turns with a part of the trace each. The isolated latency is measured before each trace on our own
server, and sets the loads and latency targets of all. The file is written after each trace; results of the same code
and settings are not measured again.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from benchmarks.record import RESULTS, read_results, write_results
from benchmarks.serving.launch import RunningServer
from benchmarks.serving.tables import console_table, console_verdicts
from benchmarks.serving.triton.environment import ROOT, TRITON
from benchmarks.serving.ways import ALL_TRACES_SERVERS, SERVERS, SHARES, STEPS, start_server
from stillhouse.errors import RuntimeMissing
from stillhouse.measure.machine import installed_versions
from stillhouse.serve.loadgen.benchmark import (
    LoadTest,
    LoadTestResult,
    measure_isolated_at,
    report_load_tests,
    run_load_test,
)
from stillhouse.serve.loadgen.request_class import Flood
from stillhouse.serve.loadgen.send import ProgressCallback

LOADS = (0.55, 0.78, 0.95)
FLOOD = 20
SLO = 3.0
REFERENCE_SERVER = "slack"
"""Server whose isolated latency is measured before every trace."""
_PACKAGES = ("fastapi", "uvicorn", "litestar", "pydantic", "msgspec")
_SOURCES = ("src/stillhouse", "benchmarks/serving")


@dataclass(frozen=True, slots=True)
class Trace:
    """A load, optionally with a flood.

    Args:
        load: seconds of work per second.
        flood: number of additional requests at one time.
    """

    load: float
    flood: int = 0

    @property
    def name(self) -> str:
        """Return the name in tables."""
        flood = f", {self.flood} pro pictures at once" if self.flood else ""
        return f"{100 * self.load:.0f} % load{flood}"


TRACES = (*(Trace(load) for load in LOADS), Trace(LOADS[0], FLOOD))
BUSIEST = TRACES[len(LOADS) - 1]


def compare_servers(
    names: Sequence[str],
    traces: Sequence[str],
    parts: int,
    seconds: float,
    seed: int,
    results: str,
    log: Callable[[str], None],
    on_progress: ProgressCallback,
) -> Mapping[str, Any]:
    """Run missing traces and write the results after each.

    Args:
        names: names of `SERVERS`; "refusing" runs the busiest trace only.
        traces: names of `TRACES`.
        parts: parts per trace, each with other arrivals.
        seconds: duration of a part.
        seed: seed of the first part.
        results: name of the results file.
        log: called with messages.
        on_progress: called with a description, the completed amount and the total.
    """
    document = _resume_document(parts, seconds, seed, results)
    # Servers that were not available before may be now.
    document["runs"] = [run for run in document["runs"] if "skipped" not in run or run["server"] not in names]
    done = {(run["trace"], run["server"]) for run in document["runs"]}
    for trace in (trace for trace in TRACES if trace.name in traces):
        selected = [name for name in names if name in ALL_TRACES_SERVERS or trace == BUSIEST]
        missing = [name for name in selected if (trace.name, name) not in done]
        if missing:
            log(f"{trace.name}: {', '.join(selected)}")
            # Servers of a trace are only comparable if they take turns, so all of them run again.
            others = [run for run in document["runs"] if run["trace"] != trace.name]
            document["runs"] = sorted(
                [*others, *_run_trace(selected, trace, document["settings"], log, on_progress)], key=_run_order
            )
            write_results(results, {**document, "rivals": {**installed_versions(_PACKAGES), "triton": TRITON}})
    log(f"\n{console_table(document)}\n{console_verdicts(document)}")
    return document


def _run_order(run: Mapping[str, Any]) -> tuple[int, int]:
    return [trace.name for trace in TRACES].index(run["trace"]), list(SERVERS).index(run["server"])


def _run_trace(
    names: Sequence[str],
    trace: Trace,
    settings: Mapping[str, Any],
    log: Callable[[str], None],
    on_progress: ProgressCallback,
) -> list[dict[str, Any]]:
    """Run one trace on all servers, part by part in turns, with alternating order."""
    skipped: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers: dict[str, RunningServer] = {}
        for name in (REFERENCE_SERVER, *(name for name in names if name != REFERENCE_SERVER)):
            try:
                servers[name] = stack.enter_context(start_server(name))
            except RuntimeMissing as error:
                skipped.append({**_run_labels(name, trace), "skipped": str(error)})
        for name, server in servers.items():
            _isolated_seconds(name, server, runs=3)  # warm-up
        isolated = _isolated_seconds(REFERENCE_SERVER, servers[REFERENCE_SERVER], runs=15)
        log(f"alone: {isolated}")
        turns = [name for name in names if name in servers]
        measured: dict[str, list[LoadTestResult]] = {name: [] for name in turns}
        for part in range(settings["parts"]):
            for name in turns[:: -1 if part % 2 else 1]:
                test = _load_options(name, servers[name], trace, settings, isolated, settings["seed"] + part)
                measured[name].append(run_load_test(test, on_progress))
        after = _isolated_seconds(REFERENCE_SERVER, servers[REFERENCE_SERVER], runs=15)
    return [
        *skipped,
        *(
            {
                **_run_labels(name, trace),
                "isolated_seconds": isolated,
                "isolated_seconds_after": after,
                "report": asdict(
                    report_load_tests(_load_options(name, servers[name], trace, settings, isolated, 0), measured[name])
                ),
                "leftovers": asdict(servers[name].leftovers),
            }
            for name in turns
        ),
    ]


def _run_labels(name: str, trace: Trace) -> dict[str, Any]:
    return {"server": name, "description": SERVERS[name].description, "trace": trace.name}


def _load_options(
    name: str,
    server: RunningServer,
    trace: Trace,
    settings: Mapping[str, Any],
    isolated: Mapping[str, float],
    seed: int,
) -> LoadTest:
    return LoadTest(
        server.url,
        SERVERS[name].request_classes(isolated),
        SERVERS[name].protocol,
        load=trace.load,
        seconds=settings["seconds"],
        seed=seed,
        flood=Flood(trace.flood, settings["seconds"] / 3, "pro") if trace.flood else None,
        slo=SLO,
    )


def _isolated_seconds(name: str, server: RunningServer, runs: int) -> dict[str, float]:
    return measure_isolated_at(server.url, SERVERS[name].protocol, SERVERS[name].request_classes(), runs)


def _resume_document(parts: int, seconds: float, seed: int, results: str) -> dict[str, Any]:
    """Return the results file of the same code and settings, else an empty document."""
    settings = {"parts": parts, "seconds": seconds, "seed": seed, "slo": SLO, "shares": SHARES, "steps": STEPS}
    document = {"code": _code_digest(), "commit": _commit(), "settings": settings, "runs": []}
    if (RESULTS / f"{results}.json").exists():
        before = read_results(results)
        if (before.get("code"), before.get("settings")) == (document["code"], document["settings"]):
            return {name: before[name] for name in document}
    return document


def _code_digest() -> str:
    """Return a digest of all source files that affect the measurement: twelve hexadecimal digits."""
    files = sorted(
        path for source in _SOURCES for path in (ROOT / source).rglob("*.p*") if path.suffix in (".py", ".pbtxt")
    )
    digest = sha256()
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip()
