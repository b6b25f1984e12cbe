"""The report: everything that a sweep found, and what was chosen of it. `report.json` is the source of every view."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.errors import PipelineError
from stillhouse.json_decode import DecodeError, decode
from stillhouse.measure.machine import Machine

REPORT_FILE = "report.json"
REPORT_VERSION = 1

Goal = Literal["latency", "throughput", "memory", "cost"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "memory", "cost")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a candidate must keep. None: not asked.

    Args:
        min_sqnr: dB, of every output at every probe, against the baseline.
        min_psnr: dB, mean over same-seed pictures.
        min_ssim: mean over same-seed pictures.
        max_score_drop: points (1 is one picture in a hundred) that the oracle's score may fall.
        min_score: the oracle's score itself, 0 to 1.
        max_memory: bytes.
        max_mae: mean absolute error of every output at every probe, against the baseline.
    """

    min_sqnr: float | None = None
    min_psnr: float | None = None
    min_ssim: float | None = None
    max_score_drop: float | None = None
    min_score: float | None = None
    max_memory: int | None = None
    max_mae: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One sweep.

    Args:
        source: what was accelerated, as it was named.
        question: a checksum of what was asked besides the goal, the bounds and the time: inputs, prompts, threads.
        threads: at most so many for each network; None: the runtimes decided.
        limit, memory: seconds for one answer of a candidate, and bytes, as they were asked for.
        exact: whether networks are held to `check.CERTAIN`, because others, drawing together, missed a bound.
        goal, bounds: what the choice is about.
        machine, fingerprint, versions: where this was measured, and with which runtimes.
        load: load average over a minute, at the start and at the end.
        started: UTC, ISO 8601.
        seconds, budget: how long it took, and might have taken.
        baselines: by component, the key of the candidate that ratios and errors refer to.
        trials: every candidate, in the order of the plan; those of the whole pipeline last.
        chosen: by component, the key of the chosen candidate; `pipeline` for the walk.
        drawn_with: by component, the key of the candidate that ran it while whole pictures were measured.
        probes: by component, what it was probed with, in words.
        prompts: of the pictures in the strips, in their order.
        price: money for an hour of this machine, for the goal `cost`; None where not told.
        currency: as the price was told in.
        finished: False while the sweep still runs, or was cut off.
    """

    source: str
    goal: Goal
    bounds: Bounds
    machine: Machine
    fingerprint: str
    versions: Mapping[str, str]
    load: tuple[float, float]
    started: str
    seconds: float
    budget: float | None
    baselines: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)
    evaluated_with: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    price: float | None = None
    currency: str = "USD"
    finished: bool = False
    options_checksum: str = ""
    threads: int | None = None
    timeout: float | None = None
    memory_limit: int | None = None
    exact_only: bool = False
    version: int = REPORT_VERSION

    @property
    def is_resumable(self) -> bool:
        """Whether another run would try more: this one was cut off, or its time was over."""
        return not self.finished or any(trial.reason == BUDGET_ENDED for trial in self.trials)

    def trials_of(self, component: str) -> tuple[Trial, ...]:
        """The trials of one component, in their order."""
        return tuple(trial for trial in self.trials if trial.candidate.component == component)

    @property
    def chosen_student(self) -> str | None:
        """The name of the student that was chosen to make whole pictures; the chosen networks do not run then."""
        chosen = [one.candidate for one in self.trials_of(PIPELINE) if one.candidate.key == self.chosen.get(PIPELINE)]
        return chosen[0].options.get("student") if chosen else None

    def trial(self, component: str, key: str) -> Trial:
        """The trial with that key. KeyError where there is none."""
        found = [trial for trial in self.trials_of(component) if trial.candidate.key == key]
        if not found:
            raise KeyError(f"{component} {key}")
        return found[0]


def relative_path(path: Path, root: Path) -> str:
    """A file as a report in the directory `root` names it."""
    return path.resolve().relative_to(root.resolve()).as_posix()


def write_report(directory: Path, report: Report) -> None:
    """Write `report.json`, whole or not at all."""
    temporary = directory / f".{REPORT_FILE}.part"
    temporary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    temporary.replace(directory / REPORT_FILE)


def read_report(directory: Path) -> Report:
    """Read `report.json`.

    Raises:
        PipelineError: there is none, or it is broken, or of another version.
    """
    path = directory / REPORT_FILE
    fix = "make it with `stillhouse accelerate SOURCE -o DIR`"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{directory} holds no {REPORT_FILE}", fix=fix) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not JSON: {error}", fix=fix) from None
    if not isinstance(document, dict) or document.get("version") != REPORT_VERSION:
        raise PipelineError(f"{path} has another version than {REPORT_VERSION}", fix=fix)
    try:
        return decode(Report, document)
    except DecodeError as error:
        raise PipelineError(f"{path} is broken: {error}", fix=fix) from None
