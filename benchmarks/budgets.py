"""Whether `stillhouse accelerate --budget` keeps its time: `python -m benchmarks.budgets`.

Five models are accelerated within three budgets, each twice in one directory, so that the second run goes on. Results
are written after each run; another call goes on with those that are missing.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.grid import markdown_table
from benchmarks.real_models.models import find_model
from stillhouse.accelerate.records.report import Report, read_report
from stillhouse.cli.arguments import duration

NAME = "budgets"
BUDGETS = ("60s", "180s", "6m")
PIPELINE = "shapes"
NETWORKS = ("minilm-int8", "centerface", "yolov8", "ppocr4-rec")
"""Networks of `benchmarks.real_models`: a text encoder, two detectors, and a recogniser of text."""
BUILD = Path(__file__).parent.parent / "build" / NAME


@dataclass(frozen=True, slots=True)
class BudgetRun:
    """One run of `stillhouse accelerate --budget`.

    Args:
        seconds: duration of the command.
        longest: seconds of the longest measurement of one candidate, graph building included.
        activities: seconds by activity in this run, as the report counts them.
        measured: number of candidates that were measured in this run.
        waiting: number of candidates that are left for another run.
    """

    seconds: float
    longest: float
    activities: dict[str, float]
    measured: int
    waiting: int


def main() -> None:
    """Measure the runs that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[PIPELINE, *NETWORKS], default=[])
    parser.add_argument("--budget", action="append", choices=BUDGETS, default=[])
    arguments = parser.parse_args()
    results = dict(record.read_earlier(NAME).get("runs", {}))
    for budget in arguments.budget or BUDGETS:
        for model in arguments.only or [PIPELINE, *NETWORKS]:
            if f"{model} {budget}" not in results:
                results[f"{model} {budget}"] = [asdict(run) for run in measure_runs(model, budget)]
                record.write_results(NAME, {"runs": results})


def measure_runs(model: str, budget: str) -> list[BudgetRun]:
    """Accelerate a model twice in a new directory, and return both runs."""
    out = BUILD / f"{model}-{budget}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "stillhouse", "accelerate", *_source(model), "-o", str(out), "--budget", budget]
    runs: list[BudgetRun] = []
    before: Report | None = None
    for _ in range(2):
        start = perf_counter()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        seconds = perf_counter() - start
        report = read_report(out)
        runs.append(describe_run(report, before, seconds))
        before = report
    return runs


def describe_run(report: Report, before: Report | None, seconds: float) -> BudgetRun:
    """Return what a run did, from its report and that of the run before; None: it was the first."""
    earlier = before.activities if before else {}
    known = {trial.candidate.key for trial in before.trials if trial.ratio} if before else set()
    return BudgetRun(
        seconds,
        report.longest_seconds,
        {name: value - earlier.get(name, 0.0) for name, value in report.activities.items()},
        sum(trial.ratio is not None and trial.candidate.key not in known for trial in report.trials),
        sum(trial.is_waiting for trial in report.trials),
    )


def keeps_budget(run: Mapping[str, Any], budget: float) -> bool:
    """Return whether a run took at most 1.1 times its budget, or ended late by one candidate's time at most."""
    return bool(run["seconds"] <= max(1.1 * budget, budget + run["longest"]))


def table(results: Mapping[str, Any]) -> str:
    """Return the table of the documents: one row for each model and budget."""
    rows = []
    for name, (first, second) in results["runs"].items():
        model, _, budget = name.partition(" ")
        measuring = first["activities"].get("measuring", 0.0) + first["activities"].get("comparing pictures", 0.0)
        ended = "yes" if keeps_budget(first, duration(budget)) and keeps_budget(second, duration(budget)) else "**no**"
        rows.append(
            [
                model,
                budget,
                f"{first['seconds']:.0f} s, {second['seconds']:.0f} s",
                ended,
                f"{measuring / first['seconds']:.0%}",
                f"{first['measured']}, {second['measured']} more, {second['waiting']} left",
            ]
        )
    head = ["model", "budget", "two runs took", "in time", "of the first spent measuring", "candidates measured"]
    return markdown_table(head, rows)


def _source(model: str) -> list[str]:
    if model == PIPELINE:
        return [model]
    network = find_model(model)
    inputs = BUILD / f"{model}.npz"
    inputs.parent.mkdir(parents=True, exist_ok=True)
    sets = network.inputs()
    np.savez(inputs, allow_pickle=False, **{name: np.array([feeds[name] for feeds in sets]) for name in sets[0]})
    return [str(network.graph), "--inputs", str(inputs)]


if __name__ == "__main__":
    main()
