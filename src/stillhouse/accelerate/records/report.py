"""The report of a sweep (run of `stillhouse accelerate`): measurements of all candidates, and the chosen candidates.

`report.json` stores the report. The HTML page, the spreadsheet and the terminal output are made from this file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.errors import PipelineError
from stillhouse.measure.machine import Machine
from stillhouse.validation import InvalidDocument, convert

REPORT_FILE = "report.json"
REPORT_VERSION = 2

Goal = Literal["latency", "throughput", "memory", "cost"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "memory", "cost")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that a measured candidate must satisfy to be accepted, relative to the f32 baseline. None: no limit.

    A probe is a set of recorded inputs of a network. The oracle is a program that checks whether a picture shows what
    its prompt asks for; the score is the share of correct pictures.

    Args:
        min_sqnr: minimum signal to quantization noise ratio in dB of every output for every probe.
        min_psnr: minimum PSNR in dB, mean over pictures of equal seeds.
        min_ssim: minimum SSIM, mean over pictures of equal seeds.
        max_score_drop: maximum drop of the score in percentage points (1 is one picture in a hundred).
        min_score: minimum score, 0 to 1.
        max_memory: maximum peak memory of the process in bytes.
        max_mae: maximum mean absolute error of every output for every probe.
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
    """The result of one sweep (run of `stillhouse accelerate`).

    A trial is a candidate (configuration of a network) with its measurements. A key is the text `Candidate.key`, which
    identifies a candidate of a component (network).

    Args:
        source: name of the accelerated model.
        goal, bounds: objective and constraints by which candidates are chosen.
        machine, fingerprint, versions: measured machine, checksum of its properties, and versions by package.
        load: load average of the machine over one minute, at the start and at the end of the sweep.
        started: UTC time, ISO 8601.
        seconds, budget: duration of the sweep and its time limit in seconds; None: no limit.
        baselines: by component, the key of the candidate that speed-ups and errors refer to.
        trials: all trials in the order of the search; trials of whole pipelines last.
        chosen: by component, the key of the chosen candidate; "pipeline": the chosen sampling options or student.
        evaluated_with: by component, the key of the candidate with which whole pictures were generated and measured.
        probes: by component, a description of the inputs that were recorded or generated for it.
        prompts: prompts of the sample pictures, in the order of the pictures.
        price: price of one hour of this machine, for the goal `cost`; None: unknown.
        currency: name of the price's currency.
        finished: False while the sweep runs and after an interruption.
        options_checksum: checksum of the options that measurements depend on, see `options.checksum_options`.
        threads: maximum number of threads of each component; None: the backend's default.
        timeout: seconds that one command to a candidate's process may take, as the user requested.
        memory_limit: bytes that open processes may use together, as the user requested; None: the default.
        exact_only: True restricts the choice to components with an SQNR of at least `accuracy.EXACT_SQNR`, because
            components that were accepted one by one violated a bound when used together.
        careful: components for which the most accurate candidate that is better than the baseline is chosen, because
            pictures with the fastest one were worse than allowed, or hardly faster.
        version: version of the file format.
        warnings: sentences about what limits the result, such as probes that prove nothing; views show them first.
        activities: seconds by activity: recording inputs, building graphs, measuring candidates, comparing pictures.
        longest_seconds: seconds of the longest measurement of one candidate, with building its graph.
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
    careful: tuple[str, ...] = ()
    version: int = REPORT_VERSION
    warnings: tuple[str, ...] = ()
    activities: Mapping[str, float] = field(default_factory=dict)
    longest_seconds: float = 0.0

    @property
    def is_resumable(self) -> bool:
        """Return whether the sweep was interrupted or its time budget ended, so that another run would measure more."""
        return not self.finished or any(trial.is_waiting for trial in self.trials)

    def trials_of(self, component: str) -> tuple[Trial, ...]:
        """Return the trials (measured candidates) of one component, in the order of the report."""
        return tuple(trial for trial in self.trials if trial.candidate.component == component)

    @property
    def chosen_student(self) -> str | None:
        """Return the name of the distilled student that was chosen in place of the pipeline; None: no student.

        A chosen student is used as a whole, so the components chosen for the pipeline are not used.
        """
        chosen = [
            trial.candidate for trial in self.trials_of(PIPELINE) if trial.candidate.key == self.chosen.get(PIPELINE)
        ]
        return chosen[0].options.get("student") if chosen else None

    def networks_of(self, candidate: Candidate) -> dict[str, str]:
        """Return, by component, the key of each network that a candidate of the whole pipeline names in its options.

        A name that no measured network has is left out.
        """
        return {
            trial.candidate.component: trial.candidate.key
            for trial in self.trials
            if candidate.options.get(trial.candidate.component) == trial.candidate.name
        }

    def trial(self, component: str, key: str) -> Trial:
        """Return the trial (measured candidate) of a component whose candidate has the given `Candidate.key`.

        Raises:
            KeyError: the report has no such trial.
        """
        trials = [trial for trial in self.trials_of(component) if trial.candidate.key == key]
        if not trials:
            raise KeyError(f"the report has no measurements of {component} with the key {key}")
        return trials[0]


def relative_path(path: Path, root: Path) -> str:
    """Return a path as a report stores it: relative to the directory `root`, with forward slashes."""
    return path.resolve().relative_to(root.resolve()).as_posix()


def write_report(directory: Path, report: Report) -> None:
    """Write a report to `report.json` in a directory: to a temporary file first, which then replaces the old file."""
    temporary = directory / f".{REPORT_FILE}.part"
    temporary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    temporary.replace(directory / REPORT_FILE)


def read_report(directory: Path) -> Report:
    """Return the report that `report.json` in a directory contains.

    Raises:
        PipelineError: the file is missing, damaged, or of another version of the format.
    """
    path = directory / REPORT_FILE
    run_accelerate = "create it with `stillhouse accelerate SOURCE -o DIR`"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{directory} contains no {REPORT_FILE}", fix=run_accelerate) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not JSON: {error}", fix=run_accelerate) from None
    if not isinstance(document, dict) or document.get("version") != REPORT_VERSION:
        raise PipelineError(f"{path} is not a report of version {REPORT_VERSION}", fix=run_accelerate)
    try:
        return convert(Report, document)
    except InvalidDocument as error:
        raise PipelineError(f"{path} is not a valid report: {error}", fix=run_accelerate) from None
