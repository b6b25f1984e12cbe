"""Trials and reports for tests of pure functions."""

from typing import Any

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, Report
from stillhouse.accelerate.records.trial import Status, Trial
from stillhouse.measure.clock import Ratio, Timing
from stillhouse.measure.fidelity import Fidelity
from stillhouse.measure.machine import Machine

MACHINE = Machine("Some Processor", 2, 24 << 30, ("avx2",), "Linux x86_64", "3.11")


def make_trial(name: str, speed: float = 1.0, sqnr: float = 60.0, status: Status = "accepted", **fields: Any) -> Trial:
    """Return a trial whose candidate has the backend `name` and the speed-up `speed`."""
    component = fields.pop("component", "denoiser")
    candidate = fields.pop("candidate", Candidate(component, name))
    defaults: dict[str, Any] = {
        "fidelity": {"noise 0.9": Fidelity(sqnr, 1.0, 0.0, 0.0)},
        "ratio": Ratio(speed, 0.95 * speed, 1.05 * speed),
        "seconds": Timing(1 / speed, 1.2 / speed, 0.9 / speed, 10),
    }
    return Trial(candidate, status, **{**defaults, **fields})


def make_report(*trials: Trial, **fields: Any) -> Report:
    """Return a report of these trials."""
    defaults: dict[str, Any] = {
        "source": "shapes",
        "goal": "latency",
        "bounds": Bounds(),
        "machine": MACHINE,
        "fingerprint": MACHINE.fingerprint(),
        "versions": {"stillhouse": "0.1.0"},
        "load": (0.0, 0.0),
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "budget": None,
    }
    return Report(trials=trials, **{**defaults, **fields})
