"""Gains of `stillhouse accelerate` on the embedded model and on a model of real size, and reliability of its choice.

`python -m benchmarks.accelerate shapes` sweeps the embedded model with the user's command, then scores the result and
the plain loops on onnxruntime and on OpenVINO's defaults on a thousand captions; `judge` scores what is missing after
an interruption. `sd15` sweeps the denoiser of Stable Diffusion 1.5
with random weights; `vanilla`, its last part, times the fastest candidate side by side with torch. `choice` times the
same candidates twenty times and compares each choice with long measurements of all of them.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.record import read_results, write_results
from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE
from stillhouse.accelerate.evaluation.baseline import measure_baseline
from stillhouse.accelerate.evaluation.context import ARTIFACTS_FOLDER, BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.evaluate import evaluate
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report, read_report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.accelerate.selection.runoff import BASELINE_KEY, run_final, time_side_by_side
from stillhouse.accelerate.workspace import original_components
from stillhouse.measure.clock import Ratio, paired_ratio
from stillhouse.measure.memory import resident_bytes
from stillhouse.pipelines.manifest import TRIALS

BUILD = Path("build").absolute()
ONNXRUNTIME_BASELINE, OPENVINO_BASELINE = "plain loop, onnxruntime f32", "plain loop, openvino defaults"
_SHAPES_OUT = BUILD / "faster-shapes"
VANILLA = Candidate("denoiser", "torch", options={"attention": "vanilla"})
_WITHIN, _CONTENDER_SHARE = 0.95, 0.8
_OPENINGS, _ROUNDS = 2, 30
_POLL_SECONDS = 0.5


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(_BENCHMARKS))
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget", default="50m", help="of sd15; an interrupted sweep resumes")
    arguments = parser.parse_args()
    _BENCHMARKS[arguments.which](arguments)


def _shapes(arguments: argparse.Namespace) -> None:
    shutil.rmtree(_SHAPES_OUT, ignore_errors=True)
    _sweep("shapes", _SHAPES_OUT, "--budget", "6m")
    report = read_report(_SHAPES_OUT)
    write_results("accelerate", {"seconds": report.seconds, "judged": {}, "report": asdict(_without_paths(report))})
    _judge(arguments)


def _judge(arguments: argparse.Namespace) -> None:
    """Score the result of `shapes` and the plain loops, and add the scores that are missing to the results."""
    pipelines = {
        "chosen": (str(_SHAPES_OUT),),
        ONNXRUNTIME_BASELINE: ("shapes", "--backend", "onnxruntime", "--precision", "f32"),
        OPENVINO_BASELINE: ("shapes", "--backend", "openvino", "--precision", "auto"),
    }
    for name, (model, *options) in pipelines.items():
        results = read_results("accelerate")
        if name not in results["judged"]:
            judged = {**results["judged"], name: _run_judge(model, arguments.captions, *options)}
            measured = {key: results[key] for key in ("seconds", "report")}
            write_results("accelerate", {**measured, "judged": judged})


def _sd15(arguments: argparse.Namespace) -> None:
    folder = BUILD / "sd15"
    if not (folder / "pipeline").is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.sd15", "--keep"], check=True)
    out = BUILD / "faster-sd15"
    options = ("--component", "denoiser", "--memory", "20GiB", "--budget", arguments.budget, "--min-sqnr", "10")
    swept = _sweep(str(folder / "pipeline"), out, *options)
    write_results("accelerate_sd15", {**asdict(swept), "report": asdict(_without_paths(read_report(out)))})
    _vanilla(arguments)


def _vanilla(arguments: argparse.Namespace) -> None:
    """Time the fastest candidate with torch as the baseline; the sweep's baseline is onnxruntime."""
    out = BUILD / "faster-sd15"
    report = read_report(out)
    recorded = [report.trial("denoiser", VANILLA.key), report.trial("denoiser", report.chosen["denoiser"])]
    recorded.insert(1, report.trial("denoiser", report.baselines["denoiser"]))
    with _evaluation_context(out, report, TimingBudget(min_rounds=3, max_rounds=4, seconds=300.0), VANILLA) as (
        context,
        first,
        baseline_run,
    ):
        trials = _evaluate_again(first, context, baseline_run, recorded)
    measured = {
        name: value for name, value in read_results("accelerate_sd15").items() if name not in ("machine", "versions")
    }
    write_results("accelerate_sd15", {**measured, "beside_torch": [asdict(trial) for trial in trials]})


def _choice(arguments: argparse.Namespace) -> None:
    """Compare the choices of repeated short comparisons, as in a sweep, with long measurements of all accepted
    candidates.

    The long measurements have more rounds and openings than a sweep's final. Candidates below `_CONTENDER_SHARE` of the
    fastest are left out of the short comparisons, because they would rarely reach the final.
    """
    out = _SHAPES_OUT
    report = read_report(out)
    fastest = report.trial("denoiser", report.chosen["denoiser"]).ratio
    accepted = [
        trial
        for trial in report.trials_of("denoiser")
        if trial.status == "accepted" and _is_contender(trial.ratio, fastest)
    ]
    truth = _long_run_speedups(out, report, accepted)
    best = max(truth, key=truth.__getitem__)
    contenders = [trial for trial in accepted if truth.get(trial.candidate.key, 0.0) >= _CONTENDER_SHARE * truth[best]]
    names = {trial.candidate.key: trial.candidate.name for trial in accepted}
    for trial in contenders:
        print(f"{names[trial.candidate.key]}: {truth[trial.candidate.key]:.3f} times the baseline", flush=True)
    shares = []
    for repeat in range(arguments.repeats):
        with _evaluation_context(out, report, TimingBudget()) as (context, first, baseline_run):
            trials = _evaluate_again(first, context, baseline_run, contenders)
            finalists = {trial.candidate.key: trial for trial in run_final(trials, context, baseline_run)}
        chosen = best_trial([finalists.get(trial.candidate.key, trial) for trial in trials], "latency")
        assert chosen
        shares.append(truth[chosen.candidate.key] / truth[best])
        within = sum(share >= _WITHIN for share in shares)
        counts = {"candidates": len(accepted), "contenders": len(contenders), "truth": truth}
        write_results("choice", {"best": names[best], "shares": shares, "within": within, **counts})
        print(f"{repeat + 1}: {chosen.candidate.name}: {shares[-1]:.3f} of the best", flush=True)
    print(f"within 5 % of the best in {within} of {len(shares)} repeats")


def _is_contender(ratio: Ratio | None, fastest: Ratio | None) -> bool:
    """Return whether the candidate was at most twice as slow as the sweep's choice."""
    return ratio is not None and fastest is not None and ratio.high >= fastest.value / 2


def _long_run_speedups(out: Path, report: Report, accepted: list[Trial]) -> dict[str, float]:
    """Return the speed-up over the baseline by key, from long measurements."""
    seconds: dict[str, list[float]] = {}
    for _ in range(_OPENINGS):
        with _evaluation_context(out, report, TimingBudget(min_rounds=1, max_rounds=1)) as (
            context,
            first,
            baseline_run,
        ):
            rounds = TimingBudget(min_rounds=_ROUNDS, max_rounds=_ROUNDS, seconds=600.0)
            for key, timings in time_side_by_side(accepted, context, baseline_run, rounds).items():
                seconds.setdefault(key, []).extend(timings)
    return {key: paired_ratio(seconds[BASELINE_KEY], timings).value for key, timings in seconds.items() if key} | {
        first.candidate.key: 1.0
    }


@contextmanager
def _evaluation_context(
    out: Path, report: Report, timing_budget: TimingBudget, baseline: Candidate | None = None
) -> Iterator[tuple[EvaluationContext, Trial, BaselineRun]]:
    """Yield the evaluation context of the sweep's denoiser, the baseline's trial and its open run."""
    context = EvaluationContext(
        folder=out / TRIALS / "denoiser" / "again",
        artifacts=out / TRIALS / "denoiser" / ARTIFACTS_FOLDER,
        root=out,
        graph=out / original_components(out)["denoiser"].graph,
        probes=out / TRIALS / "denoiser" / PROBES_FILE,
        bounds=replace(report.bounds, min_psnr=None, min_ssim=None),  # pictures are not compared here
        timing_budget=timing_budget,
    )
    first, baseline_run = measure_baseline(
        baseline or report.trial("denoiser", report.baselines["denoiser"]).candidate, context
    )
    assert baseline_run
    try:
        yield context, first, baseline_run
    finally:
        baseline_run.process.kill()


def _evaluate_again(
    first: Trial, context: EvaluationContext, baseline_run: BaselineRun, trials: list[Trial]
) -> list[Trial]:
    """Evaluate the trials' candidates again, with graphs that are already built. The baseline's trial comes first."""
    others = [trial.candidate for trial in trials if trial.candidate != first.candidate]
    return [first, *(evaluate(candidate, context, baseline_run) for candidate in others)]


@dataclass(frozen=True, slots=True)
class SweepUsage:
    """Duration of a sweep in seconds, and the peak memory of all its processes together in bytes."""

    seconds: float
    peak_bytes: int


def _sweep(source: str, out: Path, *options: str) -> SweepUsage:
    command = [sys.executable, "-m", "stillhouse", "accelerate", source, "-o", str(out), *options]
    start, peak = perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            sleep(_POLL_SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    return SweepUsage(perf_counter() - start, peak)


def _run_judge(model: str, captions: int, *options: str) -> dict[str, Any]:
    """Return the scores of a model with its own defaults, from `stillhouse judge`."""
    file = BUILD / "judged.json"
    steps = str(_steps(model))
    command = [sys.executable, "-m", "stillhouse", "judge", model, "--captions", str(captions), "--steps", steps]
    subprocess.run([*command, "--json", str(file), *options], check=True)
    judged: dict[str, Any] = json.loads(file.read_text())
    return judged


def _steps(model: str) -> int:
    from stillhouse.pipelines.load import find_pipeline
    from stillhouse.pipelines.manifest import read_manifest

    return read_manifest(find_pipeline(model)).defaults.steps


def _without_paths(report: Report) -> Report:
    """Return the report without paths of files that are not committed."""
    slim = [
        replace(
            trial,
            log=None,
            reproduce=None,
            artifact=None,
            graph=None,
            pictures=replace(trial.pictures, files=()) if trial.pictures else None,
        )
        for trial in report.trials
    ]
    return replace(report, trials=tuple(slim))


_BENCHMARKS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "shapes": _shapes,
    "judge": _judge,
    "sd15": _sd15,
    "vanilla": _vanilla,
    "choice": _choice,
}

if __name__ == "__main__":
    main()
