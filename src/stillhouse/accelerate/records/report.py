"""The report of a sweep: all trials and the choice. `report.json` is the source of every view."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.trial import BUDGET_ENDED, Trial
from stillhouse.errors import PipelineError
from stillhouse.measure.machine import Machine
from stillhouse.validation import InvalidDocument, convert

REPORT_FILE = "report.json"
REPORT_VERSION = 2

Goal = Literal["latency", "throughput", "memory", "cost"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "memory", "cost")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Constraints that an accepted trial satisfies. None: no constraint.

    Args:
        min_sqnr: dB, for every output at every probe, relative to the baseline.
        min_psnr: dB, mean over same-seed pictures.
        min_ssim: mean over same-seed pictures.
        max_score_drop: percentage points (1 is one picture in a hundred) by which the oracle's score may fall.
        min_score: the oracle's score, 0 to 1.
        max_memory: bytes.
        max_mae: mean absolute error of every output at every probe, relative to the baseline.
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
    """The result of one sweep.

    Args:
        source: name of the accelerated model.
        goal, bounds: objective and constraints of the choice.
        machine, fingerprint, versions: machine and package versions of the measurements.
        load: load average over one minute, at the start and at the end.
        started: UTC time, ISO 8601.
        seconds, budget: duration of the sweep and its time limit.
        baselines: by component, the key of the candidate that ratios and errors refer to.
        trials: all candidates in the order of the search; pipeline candidates last.
        chosen: by component, the key of the chosen candidate; "pipeline": the chosen sampling variant or student.
        evaluated_with: by component, the key of the candidate with which whole pictures were measured.
        probes: by component, a description of its probes.
        prompts: prompts of the sample pictures, in their order.
        price: price of one hour of this machine, for the goal `cost`; None: unknown.
        currency: currency of the price.
        finished: False while the sweep runs and after an interruption.
        options_checksum: checksum of the options that measurements depend on, see `options.checksum_options`.
        threads: maximum number of threads of each component; None: the backend's default.
        timeout, memory_limit: seconds of one call of a candidate process, and bytes, as requested by the user.
        exact_only: True restricts the choice to components with at least `accuracy.EXACT_SQNR`, because the
            individually accepted components together violated a bound.
        version: format of the report.
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
        """Return whether another run would evaluate more candidates: the sweep was interrupted or out of time."""
        return not self.finished or any(trial.reason == BUDGET_ENDED for trial in self.trials)

    def trials_of(self, component: str) -> tuple[Trial, ...]:
        """Return the trials of one component in their order."""
        return tuple(trial for trial in self.trials if trial.candidate.component == component)

    @property
    def chosen_student(self) -> str | None:
        """Return the name of the student chosen for whole pictures; None: no student. A student replaces the chosen
        components.
        """
        chosen = [
            trial.candidate for trial in self.trials_of(PIPELINE) if trial.candidate.key == self.chosen.get(PIPELINE)
        ]
        return chosen[0].options.get("student") if chosen else None

    def trial(self, component: str, key: str) -> Trial:
        """Return the trial of a component by its candidate's key.

        Raises:
            KeyError: the report has no such trial.
        """
        trials = [trial for trial in self.trials_of(component) if trial.candidate.key == key]
        if not trials:
            raise KeyError(f"{component} {key}")
        return trials[0]


def relative_path(path: Path, root: Path) -> str:
    """Return the path relative to `root`, with forward slashes, as a report stores it."""
    return path.resolve().relative_to(root.resolve()).as_posix()


def write_report(directory: Path, report: Report) -> None:
    """Write `report.json` atomically."""
    temporary = directory / f".{REPORT_FILE}.part"
    temporary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    temporary.replace(directory / REPORT_FILE)


def read_report(directory: Path) -> Report:
    """Read `report.json`.

    Raises:
        PipelineError: the file is missing, damaged, or of another version.
    """
    path = directory / REPORT_FILE
    fix = "create it with `stillhouse accelerate SOURCE -o DIR`"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{directory} contains no {REPORT_FILE}", fix=fix) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not JSON: {error}", fix=fix) from None
    if not isinstance(document, dict) or document.get("version") != REPORT_VERSION:
        raise PipelineError(f"{path} is not a report of version {REPORT_VERSION}", fix=fix)
    try:
        return convert(Report, document)
    except InvalidDocument as error:
        raise PipelineError(f"{path} is broken: {error}", fix=fix) from None
