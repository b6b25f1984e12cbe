"""Measurement of one network: what `stillhouse accelerate` claims of it, and what is found without it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.real_models.network_process import NetworkFailed, NetworkProcess
from benchmarks.real_models.real_model import Feeds, Outputs, RealModel
from benchmarks.real_models.task_error import Array, Measure
from benchmarks.real_models.wheels import BUILD
from stillhouse.accelerate.records.report import read_report
from stillhouse.measure.clock import Ratio, Timing, paired_ratio, run_interleaved, summarise

ROUNDS = 20
_LEAST_COSINE = 0.9
"""Of an output in a further shape with the original's: rows that are mixed up or left empty fall below it."""
_LAST_LINES = 4
_HANG_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Claim:
    """What the report of `stillhouse accelerate` says of the candidate that it chose.

    Args:
        chosen: name of the candidate.
        sqnr: lowest SQNR of an output in dB; None: not measured.
        ratio: speed-up over its own baseline; None: not measured.
    """

    chosen: str
    sqnr: float | None
    ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One network's results.

    Args:
        package, file, licence, kind: where the network comes from, and what it does.
        findings: what the original network finds in the held-out inputs.
        seconds: duration of `stillhouse accelerate`.
        failure: what `stillhouse accelerate` or the accelerated network said where it failed; "": it did not fail.
        claim: what the report says; None after a failure.
        task: errors of the task on held-out inputs.
        timings: seconds of one call of "onnxruntime" and of "accelerated".
        ratio: how many times faster the accelerated network is than plain onnxruntime.
        shapes: by a shape that the file allows: "" where the accelerated network runs it and agrees, else the reason.
    """

    package: str
    file: str
    licence: str
    kind: str
    findings: str
    seconds: float
    failure: str = ""
    claim: Claim | None = None
    task: tuple[Measure, ...] = ()
    timings: Mapping[str, Timing] = field(default_factory=dict)
    ratio: Ratio | None = None
    shapes: Mapping[str, str] = field(default_factory=dict)


def measure_model(model: RealModel, budget: str, rounds: int = ROUNDS) -> Measured:
    """Accelerate a network with half of its inputs, and measure the result with the other half.

    Args:
        model: the network.
        budget: time limit of `stillhouse accelerate`, such as 60s.
        rounds: rounds in which the original and the accelerated network take turns.

    Raises:
        SystemExit: the original network finds nothing in the held-out inputs, so that nothing could be proved.
    """
    sets = model.inputs()
    with NetworkProcess("onnxruntime", model.graph) as plain:
        reference = model.perform(plain.run)
        findings = model.findings(reference)
        if not findings:
            sys.exit(f"{model.name}: the held-out inputs do not exercise the network")
        directory = BUILD / "accelerated" / model.name
        seconds, failure = accelerate(model.graph, sets, directory, budget)
        package = f"{model.wheel.name} {model.wheel.version}"
        measured = Measured(package, model.file, model.wheel.licence, model.kind, findings, seconds, failure)
        if failure:
            return measured
        claim = read_claim(directory)
        try:
            with NetworkProcess("stillhouse", directory) as accelerated:
                task = tuple(model.compare(reference, model.perform(accelerated.run)))
                shapes = {
                    shape: compare_shape(plain, accelerated, feeds) for shape, feeds in model.other_inputs().items()
                }
                timings = take_turns({"onnxruntime": plain, "accelerated": accelerated}, sets, rounds)
        except NetworkFailed as error:
            return replace(measured, failure=str(error), claim=claim)
    ratio = paired_ratio(timings["onnxruntime"], timings["accelerated"])
    summaries = {name: summarise(values) for name, values in timings.items()}
    return replace(measured, claim=claim, task=task, timings=summaries, ratio=ratio, shapes=shapes)


def accelerate(graph: Path, sets: Sequence[Feeds], directory: Path, budget: str) -> tuple[float, str]:
    """Run `stillhouse accelerate` as a user does, and return its seconds and, where it failed, its last lines."""
    shutil.rmtree(directory, ignore_errors=True)
    inputs = directory.with_suffix(".npz")
    inputs.parent.mkdir(parents=True, exist_ok=True)
    np.savez(inputs, **{name: np.stack([feeds[name] for feeds in sets]) for name in sets[0]})  # type: ignore[arg-type]
    options = ["-o", str(directory), "--inputs", str(inputs), "--budget", budget]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = perf_counter()
    with directory.with_suffix(".log").open("w+", encoding="utf-8") as log:
        command = [sys.executable, "-m", "stillhouse", "accelerate", str(graph), *options]
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
            try:
                code = process.wait(_HANG_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return perf_counter() - start, f"no end after {_HANG_SECONDS} s"
        seconds = perf_counter() - start
        log.seek(0)
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return seconds, (" ".join(lines[-_LAST_LINES:]) or f"exit code {code}") if code else ""


def read_claim(directory: Path) -> Claim:
    """Return what the report in a directory says of the chosen candidate."""
    report = read_report(directory)
    ((component, key),) = report.chosen.items() if report.chosen else report.baselines.items()
    trial = report.trial(component, key)
    fidelity = trial.worst_fidelity
    return Claim(trial.candidate.name, fidelity.sqnr if fidelity else None, trial.ratio)


def take_turns(networks: Mapping[str, NetworkProcess], sets: Sequence[Feeds], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one call of each network, round by round; the networks take turns."""
    for network in networks.values():
        network.load(sets)
        network.seconds()
    return run_interleaved({name: network.seconds for name, network in networks.items()}, rounds)


def compare_shape(plain: NetworkProcess, accelerated: NetworkProcess, feeds: Feeds) -> str:
    """Return why the accelerated network differs from the original on inputs of another shape; "": it agrees.

    Raises:
        NetworkFailed: the original network does not allow the shape.
    """
    reference = plain.run(feeds)
    try:
        found = accelerated.run(feeds)
    except NetworkFailed as error:
        return str(error)
    return describe_difference(reference, found)


def describe_difference(reference: Outputs, found: Outputs) -> str:
    """Return which output has another shape or is unlike the original's; "": all agree."""
    for name, value in reference.items():
        other = found.get(name)
        if other is None or other.shape != value.shape:
            shape = "missing" if other is None else f"of shape {other.shape} instead of {value.shape}"
            return f"output {name} is {shape}"
        if _cosine(value, other) < _LEAST_COSINE:
            return f"output {name} is unlike the original's (cosine {_cosine(value, other):.2f})"
    return ""


def _cosine(one: Array, other: Array) -> float:
    first, second = (np.asarray(values, np.float64).ravel() for values in (one, other))
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    if lengths == 0.0:
        return float(np.array_equal(first, second))
    return float(first @ second) / lengths
