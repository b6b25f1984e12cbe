"""The same requests for every server: `python -m benchmarks.serving` writes results/serving.json.

Four of five pictures take 3 steps, the others 35. A machine's speed drifts within minutes by more than servers differ,
and near full load a little speed is much waiting. So all servers of a trace are up at once and take turns, a part of
the trace each; what two cores do is measured before each trace, on our own server with one picture at a time, and gives
the loads and the promises for all. After each trace the file is written; what is there for the same code and settings
is not run again.
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
"""The server that is measured alone, before every trace."""
_PACKAGES = ("fastapi", "uvicorn", "litestar", "pydantic", "msgspec")
_SOURCES = ("src/stillhouse", "benchmarks/serving")


@dataclass(frozen=True, slots=True)
class Trace:
    """How requests come: a load, and perhaps a flood in the middle."""

    load: float
    flood: int = 0

    @property
    def name(self) -> str:
        """As tables call it."""
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
    tell: Callable[[str], None],
    bar: ProgressCallback,
) -> Mapping[str, Any]:
    """Run what has not been run, and write it down after each trace.

    Args:
        names: of `WAYS`; "refusing" is loaded with the busiest trace only.
        traces: names of `TRACES`.
        parts: that each trace has, each with other moments.
        seconds: of each part.
        seed: of the first part.
        results: name of the file.
        tell: hears what is being done.
        bar: hears how far it is.
    """
    document = _resume_document(parts, seconds, seed, results)
    # What could not be had then may be here now.
    document["runs"] = [one for one in document["runs"] if "skipped" not in one or one["server"] not in names]
    done = {(one["trace"], one["server"]) for one in document["runs"]}
    for trace in (trace for trace in TRACES if trace.name in traces):
        meant = [name for name in names if name in ALL_TRACES_SERVERS or trace == BUSIEST]
        missing = [name for name in meant if (trace.name, name) not in done]
        if missing:
            tell(f"{trace.name}: {', '.join(meant)}")
            # Turns count only beside the others' turns, so what was there is run again.
            kept = [one for one in document["runs"] if one["trace"] != trace.name]
            document["runs"] = sorted(
                [*kept, *_run_trace(meant, trace, document["settings"], tell, bar)], key=_run_order
            )
            write_results(results, {**document, "rivals": {**installed_versions(_PACKAGES), "triton": TRITON}})
    tell(f"\n{console_table(document)}\n{console_verdicts(document)}")
    return document


def _run_order(run: Mapping[str, Any]) -> tuple[int, int]:
    return [trace.name for trace in TRACES].index(run["trace"]), list(SERVERS).index(run["server"])


def _run_trace(
    names: Sequence[str], trace: Trace, settings: Mapping[str, Any], tell: Callable[[str], None], bar: ProgressCallback
) -> list[dict[str, Any]]:
    """All servers before one trace, part by part in turns; every second time in the opposite order."""
    skipped: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers: dict[str, RunningServer] = {}
        for name in (REFERENCE_SERVER, *(name for name in names if name != REFERENCE_SERVER)):
            try:
                servers[name] = stack.enter_context(start_server(name))
            except RuntimeMissing as error:
                skipped.append({**_run_labels(name, trace), "skipped": str(error)})
        for name, server in servers.items():
            _isolated_seconds(name, server, runs=3)  # the first pictures of a server take longer
        alone = _isolated_seconds(REFERENCE_SERVER, servers[REFERENCE_SERVER], runs=15)
        tell(f"alone: {alone}")
        turns = [name for name in names if name in servers]
        measured: dict[str, list[LoadTestResult]] = {name: [] for name in turns}
        for part in range(settings["parts"]):
            for name in turns[:: -1 if part % 2 else 1]:
                asked = _load_options(name, servers[name], trace, settings, alone, settings["seed"] + part)
                measured[name].append(run_load_test(asked, bar))
        after = _isolated_seconds(REFERENCE_SERVER, servers[REFERENCE_SERVER], runs=15)
    return [
        *skipped,
        *(
            {
                **_run_labels(name, trace),
                "alone": alone,
                "alone_after": after,
                "report": asdict(
                    report_load_tests(_load_options(name, servers[name], trace, settings, alone, 0), measured[name])
                ),
                "left": asdict(servers[name].leftovers),
            }
            for name in turns
        ),
    ]


def _run_labels(name: str, trace: Trace) -> dict[str, Any]:
    return {"server": name, "told": SERVERS[name].description, "trace": trace.name}


def _load_options(
    name: str, server: RunningServer, trace: Trace, settings: Mapping[str, Any], alone: Mapping[str, float], seed: int
) -> LoadTest:
    return LoadTest(
        server.url,
        SERVERS[name].request_classes(alone),
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
    """What was measured before with this code and these settings, to go on with; else an empty document."""
    settings = {"parts": parts, "seconds": seconds, "seed": seed, "slo": SLO, "shares": SHARES, "steps": STEPS}
    document = {"code": _code_digest(), "commit": _commit(), "settings": settings, "runs": []}
    if (RESULTS / f"{results}.json").exists():
        before = read_results(results)
        if (before.get("code"), before.get("settings")) == (document["code"], document["settings"]):
            return {name: before[name] for name in document}
    return document


def _code_digest() -> str:
    """Of everything that decides how a server behaves here: twelve hexadecimal digits."""
    files = sorted(
        path for source in _SOURCES for path in (ROOT / source).rglob("*.p*") if path.suffix in (".py", ".pbtxt")
    )
    digest = sha256()
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()
