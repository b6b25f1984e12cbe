"""The same requests for every server: `python -m benchmarks.serving` writes results/serving.json.

Four of five pictures take 3 steps, the others 35. What two cores do is measured first, on our own server with one
picture at a time, and gives the loads and the promises for all. After each run the file is written; what is there for
the same code and settings is not run again.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from benchmarks.record import RESULTS, record, recorded
from benchmarks.serving.tables import bars, comparison
from benchmarks.serving.triton.environment import ROOT, TRITON
from benchmarks.serving.ways import EVERYWHERE, SHARES, STEPS, WAYS, Way, serving
from stillhouse.errors import RuntimeMissing
from stillhouse.measure.machine import versions
from stillhouse.serve.load.kind import Flood
from stillhouse.serve.load.run import Asked, run, seconds_alone
from stillhouse.serve.load.send import Tell

LOADS = (0.55, 0.78, 0.95)
FLOOD = 20
SLO = 3.0
FIRST = "slack"
"""The server that is measured alone."""
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


def compare(
    names: Sequence[str], seconds: float, seed: int, results: str, tell: Callable[[str], None], bar: Tell
) -> Mapping[str, Any]:
    """Run what has not been run, and write it down after each.

    Args:
        names: of `WAYS`; "refusing" is loaded with the busiest trace only.
        seconds: of each run.
        seed: of the traces.
        results: name of the file.
        tell: hears what is being done.
        bar: hears how far it is.
    """
    document = _begun(seconds, seed, results)
    if not document["alone"]:
        tell(f"what a picture takes alone, on {FIRST}")
        document["alone"] = _alone(FIRST, runs=15)
        _write(document, results)
    tell(f"alone: {document['alone']}")
    # What could not be had then may be here now.
    document["runs"] = [one for one in document["runs"] if "skipped" not in one or one["server"] not in names]
    done = {(one["trace"], one["server"]) for one in document["runs"]}
    for trace in TRACES:
        for name in names:
            is_meant = name in EVERYWHERE or trace == BUSIEST
            if is_meant and (trace.name, name) not in done:
                tell(f"{trace.name}: {name}")
                document["runs"] = sorted([*document["runs"], _run(name, trace, document, bar)], key=_place)
                _write(document, results)
    tell(f"\n{comparison(document)}\n{bars(document)}")
    return document


def _place(run: Mapping[str, Any]) -> tuple[int, int]:
    return [trace.name for trace in TRACES].index(run["trace"]), list(WAYS).index(run["server"])


def _run(name: str, trace: Trace, document: Mapping[str, Any], bar: Tell) -> dict[str, Any]:
    """One server before one trace; its seconds alone are measured again before and after, since machines drift."""
    about = {"server": name, "told": WAYS[name].told, "trace": trace.name}
    settings, alone = document["settings"], document["alone"]
    try:
        with serving(name) as server:
            before = _alone_at(server.url, WAYS[name])
            asked = Asked(
                server.url,
                WAYS[name].kinds(alone),
                WAYS[name].protocol,
                load=trace.load,
                seconds=settings["seconds"],
                seed=settings["seed"],
                flood=Flood(trace.flood, settings["seconds"] / 2, "pro") if trace.flood else None,
                slo=SLO,
            )
            report = run(asked, bar)
            after = _alone_at(server.url, WAYS[name])
    except RuntimeMissing as error:
        return {**about, "skipped": str(error)}
    return {
        **about,
        "report": asdict(report),
        "alone_before": before,
        "alone_after": after,
        "left": asdict(server.left),
    }


def _alone(name: str, runs: int) -> dict[str, float]:
    with serving(name) as server:
        return _alone_at(server.url, WAYS[name], runs)


def _alone_at(url: str, way: Way, runs: int = 5) -> dict[str, float]:
    return seconds_alone(url, way.protocol, way.kinds(), runs)


def _begun(seconds: float, seed: int, results: str) -> dict[str, Any]:
    """What was measured before with this code and these settings, to go on with; else an empty document."""
    settings = {"seconds": seconds, "seed": seed, "slo": SLO, "shares": SHARES, "steps": STEPS}
    document = {"code": _code(), "commit": _commit(), "settings": settings, "alone": {}, "runs": []}
    if (RESULTS / f"{results}.json").exists():
        before = recorded(results)
        if (before.get("code"), before.get("settings")) == (document["code"], document["settings"]):
            return {name: before[name] for name in document}
    return document


def _write(document: Mapping[str, Any], results: str) -> None:
    record(results, {**document, "rivals": {**versions(_PACKAGES), "triton": TRITON}})


def _code() -> str:
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
