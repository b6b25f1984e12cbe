"""What `stillhouse accelerate` gains, on the embedded model and on the real shape, and how reliably it chooses.

`python -m benchmarks.accelerate shapes` sweeps the embedded model with the very command that users type, then judges
the result and the plain loop on OpenVINO's defaults on a thousand captions. `sd15` sweeps the U-Net of Stable
Diffusion 1.5 with random weights; `vanilla`, its last part, times the winner beside torch. `choice` races the same
candidates twenty times and compares what is chosen with what long rounds of all of them say.
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
from stillhouse.accelerate.evaluation.evaluate import ARTIFACTS_FOLDER, BaselineRun, EvaluationContext, evaluate
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
OPENVINO_BASELINE = "plain loop, openvino defaults"
VANILLA = Candidate("unet", "torch", options={"attention": "vanilla"})
_WITHIN, _CONTENDER_SHARE = 0.95, 0.8
_OPENINGS, _ROUNDS = 2, 30
_POLL_SECONDS = 0.5


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(_BENCHMARKS))
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget", default="50m", help="of sd15; a sweep that was cut off goes on")
    arguments = parser.parse_args()
    _BENCHMARKS[arguments.which](arguments)


def _shapes(arguments: argparse.Namespace) -> None:
    out = BUILD / "faster-shapes"
    shutil.rmtree(out, ignore_errors=True)
    _sweep("shapes", out, "--budget", "6m")
    report = read_report(out)
    judged: dict[str, Any] = {}
    ways = {"chosen": (str(out),), OPENVINO_BASELINE: ("shapes", "--backend", "openvino", "--precision", "auto")}
    for name, (model, *options) in ways.items():
        judged[name] = _run_judge(model, arguments.captions, *options)
        # Judging takes longer than the sweep: what is known is kept on the way.
        write_results(
            "accelerate", {"seconds": report.seconds, "judged": judged, "report": asdict(_without_paths(report))}
        )


def _sd15(arguments: argparse.Namespace) -> None:
    folder = BUILD / "sd15"
    if not (folder / "pipeline").is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.sd15", "--keep"], check=True)
    out = BUILD / "faster-sd15"
    options = ("--component", "unet", "--memory", "20GiB", "--budget", arguments.budget, "--min-sqnr", "10")
    swept = _sweep(str(folder / "pipeline"), out, *options)
    write_results("accelerate_sd15", {**asdict(swept), "report": asdict(_without_paths(read_report(out)))})
    _vanilla(arguments)


def _vanilla(arguments: argparse.Namespace) -> None:
    """The sweep relates everything to onnxruntime; the bar is about torch, so its winner is timed beside torch, too."""
    out = BUILD / "faster-sd15"
    report = read_report(out)
    rows = [report.trial("unet", VANILLA.key), report.trial("unet", report.chosen["unet"])]
    rows.insert(1, report.trial("unet", report.baselines["unet"]))
    with _evaluation_context(out, report, TimingBudget(min_rounds=3, max_rounds=4, seconds=300.0), VANILLA) as (
        bench,
        first,
        reference,
    ):
        raced = _evaluate_again(first, bench, reference, rows)
    measured = {
        name: value for name, value in read_results("accelerate_sd15").items() if name not in ("machine", "versions")
    }
    write_results("accelerate_sd15", {**measured, "beside_torch": [asdict(one) for one in raced]})


def _choice(arguments: argparse.Namespace) -> None:
    """Twenty short races, as a sweep has them, against long rounds of all that was accepted, side by side.

    The long rounds are many more than a final has, and so are the openings. What is slower there than `_CONTENDS` of
    the fastest is left out of the short races, where it would seldom get into the final.
    """
    out = BUILD / "faster-shapes"
    report = read_report(out)
    fastest = report.trial("unet", report.chosen["unet"]).ratio
    accepted = [
        one for one in report.trials_of("unet") if one.status == "accepted" and _is_contender(one.ratio, fastest)
    ]
    truth = _long_run_speedups(out, report, accepted)
    best = max(truth, key=truth.__getitem__)
    contenders = [one for one in accepted if truth.get(one.candidate.key, 0.0) >= _CONTENDER_SHARE * truth[best]]
    names = {one.candidate.key: one.candidate.name for one in accepted}
    for one in contenders:
        print(f"{names[one.candidate.key]}: {truth[one.candidate.key]:.3f} times the baseline", flush=True)
    shares = []
    for repeat in range(arguments.repeats):
        with _evaluation_context(out, report, TimingBudget()) as (bench, first, reference):
            raced = _evaluate_again(first, bench, reference, contenders)
            again = {one.candidate.key: one for one in run_final(raced, bench, reference)}
        chosen = best_trial([again.get(one.candidate.key, one) for one in raced], "latency")
        assert chosen
        shares.append(truth[chosen.candidate.key] / truth[best])
        within = sum(share >= _WITHIN for share in shares)
        told = {"candidates": len(accepted), "contenders": len(contenders), "truth": truth}
        write_results("choice", {"best": names[best], "shares": shares, "within": within, **told})
        print(f"{repeat + 1}: {chosen.candidate.name}: {shares[-1]:.3f} of the best", flush=True)
    print(f"within 5 % of the best in {within} of {len(shares)} repeats")


def _is_contender(ratio: Ratio | None, fastest: Ratio | None) -> bool:
    """Whether the sweep did not find it at least twice as slow as what it chose."""
    return ratio is not None and fastest is not None and ratio.high >= fastest.value / 2


def _long_run_speedups(out: Path, report: Report, accepted: list[Trial]) -> dict[str, float]:
    """How many times as fast as the baseline, by key."""
    laps: dict[str, list[float]] = {}
    for _ in range(_OPENINGS):
        with _evaluation_context(out, report, TimingBudget(min_rounds=1, max_rounds=1)) as (bench, first, reference):
            rounds = TimingBudget(min_rounds=_ROUNDS, max_rounds=_ROUNDS, seconds=600.0)
            for key, taken in time_side_by_side(accepted, bench, reference, rounds).items():
                laps.setdefault(key, []).extend(taken)
    return {key: paired_ratio(laps[BASELINE_KEY], taken).value for key, taken in laps.items() if key} | {
        first.candidate.key: 1.0
    }


@contextmanager
def _evaluation_context(
    out: Path, report: Report, effort: TimingBudget, baseline: Candidate | None = None
) -> Iterator[tuple[EvaluationContext, Trial, BaselineRun]]:
    """The sweep's U-Net on its bench again, with the sweep's baseline or this one."""
    bench = EvaluationContext(
        folder=out / TRIALS / "unet" / "again",
        artifacts=out / TRIALS / "unet" / ARTIFACTS_FOLDER,
        root=out,
        graph=out / original_components(out)["unet"].graph,
        probes=out / TRIALS / "unet" / PROBES_FILE,
        bounds=replace(report.bounds, min_psnr=None, min_ssim=None),  # no pictures are drawn here
        timing_budget=effort,
    )
    first, reference = evaluate(baseline or report.trial("unet", report.baselines["unet"]).candidate, bench, None)
    assert reference
    try:
        yield bench, first, reference
    finally:
        reference.process.kill()


def _evaluate_again(first: Trial, bench: EvaluationContext, reference: BaselineRun, trials: list[Trial]) -> list[Trial]:
    """The trials' candidates, built already, raced anew. The baseline's comes first."""
    others = [trial.candidate for trial in trials if trial.candidate != first.candidate]
    return [first, *(evaluate(candidate, bench, reference)[0] for candidate in others)]


@dataclass(frozen=True, slots=True)
class SweepUsage:
    """Seconds of a sweep, and the most memory that it and all its processes held at once."""

    seconds: float
    peak_bytes: int


def _sweep(source: str, out: Path, *options: str) -> SweepUsage:
    command = [sys.executable, "-m", "stillhouse", "accelerate", source, "-o", str(out), *options]
    began, peak = perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            sleep(_POLL_SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    return SweepUsage(perf_counter() - began, peak)


def _run_judge(model: str, captions: int, *options: str) -> dict[str, Any]:
    """What `stillhouse judge` says of a model at its own defaults."""
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
    """The report without paths of files that are not kept."""
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
    "sd15": _sd15,
    "vanilla": _vanilla,
    "choice": _choice,
}

if __name__ == "__main__":
    main()
