"""A grid of ways to run denoiser and decoder at Stable Diffusion 1.5's size: `python -m benchmarks.race.grid`.

The grid combines graph, precision, attention, layers and streams without regard to the order of `stillhouse
accelerate`'s search, and shows how near its choice is to the best. Each way is opened in a process of its own and timed
in turns with the choice. The files are those of `python -m benchmarks.race`. Another call goes on with the ways that
have no result yet.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.race.subject import ACCELERATED
from benchmarks.record import read_earlier, write_results
from stillhouse.accelerate.calibration.calibration_data import read_probes
from stillhouse.accelerate.evaluation.candidate_messages import Build, Open, RunProbes, TimeCalls
from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask, read_task
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, DECODER, Candidate
from stillhouse.accelerate.records.report import read_report
from stillhouse.measure.clock import paired_ratio
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.pipelines.roles import DENOISER

NAME = "race_grid"
MAX_WAYS = 60
ROUNDS, SLOW_ROUNDS = 5, 2
CLOSE = 1.3
"""Ratio to the choice's time up to which a way is timed in all rounds; slower ones in few."""
_TIMEOUT = 900.0
_ROWS: tuple[Mapping[str, str], ...] = ({}, {"shapes": "static"}, {"streams": "2"})


def main() -> None:
    """Time the ways that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    report = read_report(ACCELERATED)
    earlier = read_earlier(NAME)
    rows, names = dict(earlier.get("rows", {})), dict(earlier.get("chosen", {}))
    for component in (DENOISER, DECODER):
        chosen = next(trial for trial in report.trials_of(component) if trial.candidate.key == report.chosen[component])
        ways = [way for way in make_ways(component) if _label(way) not in rows]
        if not ways:
            continue
        names[component] = chosen.candidate.name
        task = read_task(ACCELERATED / "trials" / component / chosen.candidate.key / TASK_FILE)
        with CandidateProcess(task) as process:
            _open(process)
            for way in ways:
                rows[_label(way)] = time_way(way, task, process, report.baselines[component])
                print(f"{_label(way)}: {rows[_label(way)]}", flush=True)
                write_results(NAME, {"rows": rows, "chosen": names})


def _label(way: Candidate) -> str:
    return f"{way.component}: {way.name}"


def make_ways(component: str) -> Iterator[Candidate]:
    """Yield the ways to run a network.

    >>> sum(len(list(make_ways(component))) for component in ("denoiser", "decoder")) <= MAX_WAYS
    True
    """
    attentions = ("plain", "int8") if component == DENOISER else ("plain",)
    for recipe, side in product(("f32", "int8-static"), _ROWS):
        for attention, layers in product(attentions, ("plain", "rewritten")):
            settings = {"attention": attention, "layers": layers, **side}
            options = {name: value for name, value in settings.items() if value != "plain"}
            yield Candidate(component, "openvino", recipe, "bf16", options)
        yield Candidate(component, "openvino", recipe, "f32", side)
    yield Candidate(component, "onnxruntime", options=BASELINE_OPTIONS)
    yield Candidate(component, "onnxruntime")
    for precision in ("f32", "bf16"):
        yield Candidate(component, "torch", precision=precision)


def time_way(way: Candidate, chosen: CandidateTask, process: CandidateProcess, baseline: str) -> dict[str, Any]:
    """Return the seconds of a way and of the choice in turns, and the SQNR to the baseline's outputs.

    Args:
        way: the way to time.
        chosen: task of the choice.
        process: process in which the choice is open.
        baseline: key of the baseline, whose outputs `stillhouse accelerate` stored.
    """
    trials = Path(chosen.folder).parent
    artifact = trials / "artifacts" / way.artifact_key
    task = replace(chosen, candidate=way, folder=str(trials / "grid" / way.key), artifact=str(artifact))
    try:
        with CandidateProcess(task) as other:
            _open(other)
            other.call(RunProbes(), timeout=_TIMEOUT)
            pairs = [_turn(process, other, place) for place in range(SLOW_ROUNDS)]
            if min(pair[1] for pair in pairs) < CLOSE * min(pair[0] for pair in pairs):
                pairs += [_turn(process, other, place) for place in range(SLOW_ROUNDS, ROUNDS)]
            outputs = [read_probes(folder / OUTPUTS_FILE) for folder in (trials / baseline, other.folder)]
    except CandidateError as error:
        return {"reason": str(error)}
    own, others = zip(*pairs, strict=True)
    names = outputs[0][0].feeds
    fidelity = min(
        compare_tensors(left.feeds[name], right.feeds[name]).sqnr
        for left, right in zip(*outputs, strict=True)
        for name in names
    )
    return {"seconds": min(others), "ratio": asdict(paired_ratio(own, others)), "sqnr": fidelity}


def _open(process: CandidateProcess) -> None:
    process.start()
    process.call(Build(), timeout=_TIMEOUT)
    process.call(Open(), timeout=_TIMEOUT)
    process.call(TimeCalls(1), timeout=_TIMEOUT)


def _turn(chosen: CandidateProcess, other: CandidateProcess, place: int) -> tuple[float, float]:
    """Return the seconds of one call of the choice and of a way; the second one is first in every other turn."""
    order = (chosen, other)[:: -1 if place % 2 else 1]
    taken = {process.folder: process.call(TimeCalls(1), timeout=_TIMEOUT) for process in order}
    return taken[chosen.folder], taken[other.folder]


def ways_table(results: Mapping[str, Any]) -> str:
    """Return, for each network, the choice and the fastest ways."""
    lines = []
    for component, chosen in results["chosen"].items():
        rows = {name: row for name, row in results["rows"].items() if name.startswith(f"{component}: ")}
        timed = {name: row for name, row in rows.items() if "ratio" in row}
        ranked = sorted(timed, key=lambda name: -timed[name]["ratio"]["value"])
        for name in ranked[:3]:
            ratio = timed[name]["ratio"]
            way = name.removeprefix(f"{component}: ")
            lines.append(
                [
                    f"{component}, {len(timed)} of {len(rows)} ways run, chosen: {chosen}" if name == ranked[0] else "",
                    way,
                    f"{timed[name]['seconds']:.2f}",
                    f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                    f"{timed[name]['sqnr']:.1f} dB",
                ]
            )
    head = ["network", "fastest ways", "seconds", "as fast as the choice, times", "SQNR"]
    return markdown_table(head, lines)


if __name__ == "__main__":
    main()
