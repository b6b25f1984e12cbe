"""What `stillhouse accelerate` gains, on the embedded model and on the real shape, and how reliably it chooses.

`python -m benchmarks.accelerate shapes` sweeps the embedded model with the very command that users type, then judges
the result and the plain loop on OpenVINO's defaults on a thousand captions. `sd15` sweeps the U-Net of Stable
Diffusion 1.5 with random weights; `vanilla`, its last part, times the winner beside torch. `choice` races the same
candidates twenty times and compares what is chosen with what a long race of all of them says.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.record import record, recorded
from stillhouse.accelerate.attempt import MADE_FOLDER, Bench, attempt
from stillhouse.accelerate.candidate import Candidate
from stillhouse.accelerate.choose import best_of
from stillhouse.accelerate.final import final
from stillhouse.accelerate.probe import PROBES
from stillhouse.accelerate.race import Effort
from stillhouse.accelerate.report import Report, read_report
from stillhouse.accelerate.target import original
from stillhouse.accelerate.trial import Trial
from stillhouse.measure.memory import resident
from stillhouse.models.manifest import TRIALS

BUILD = Path("build").absolute()
PLAIN = "plain loop, openvino defaults"
VANILLA = Candidate("unet", "torch", options={"attention": "vanilla"})
_WITHIN, _CONTENDS = 0.95, 0.8
_GLANCE = 0.5


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(_WHICH))
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    _WHICH[arguments.which](arguments)


def _shapes(arguments: argparse.Namespace) -> None:
    out = BUILD / "faster-shapes"
    shutil.rmtree(out, ignore_errors=True)
    _sweep("shapes", out, "--budget", "6m")
    report = read_report(out)
    judged: dict[str, Any] = {}
    ways = {"chosen": (str(out),), PLAIN: ("shapes", "--backend", "openvino", "--precision", "auto")}
    for name, (model, *options) in ways.items():
        judged[name] = _judged(model, arguments.captions, *options)
        # Judging takes longer than the sweep: what is known is kept on the way.
        record("accelerate", {"seconds": report.seconds, "judged": judged, "report": asdict(_slim(report))})


def _sd15(arguments: argparse.Namespace) -> None:
    from benchmarks.sd15 import _import, _write

    folder = BUILD / "sd15"
    if not (folder / "pipeline").is_dir():
        _write(folder, 1)
        _import(folder, 1)
    out = BUILD / "faster-sd15"
    options = ("--component", "unet", "--memory", "20GiB", "--budget", "55m", "--min-sqnr", "10")
    swept = _sweep(str(folder / "pipeline"), out, *options)
    record("accelerate_sd15", {**asdict(swept), "report": asdict(_slim(read_report(out)))})
    _vanilla(arguments)


def _vanilla(arguments: argparse.Namespace) -> None:
    """The sweep relates everything to onnxruntime; the bar is about torch, so its winner is timed beside torch, too."""
    out = BUILD / "faster-sd15"
    report = read_report(out)
    rows = [report.trial("unet", VANILLA.key), report.trial("unet", report.chosen["unet"])]
    rows.insert(1, report.trial("unet", report.baselines["unet"]))
    raced = _raced(out, report, rows, Effort(least=3, most=4, seconds=300.0), VANILLA)
    measured = {
        name: value for name, value in recorded("accelerate_sd15").items() if name not in ("machine", "versions")
    }
    record("accelerate_sd15", {**measured, "beside_torch": [asdict(one) for one in raced]})


def _choice(arguments: argparse.Namespace) -> None:
    """Twenty short races, as a sweep has them, against one long race of everything that was accepted.

    What is slower than `_CONTENDS` of the fastest in the long race is left out of the short ones: no interval of theirs
    reaches so far.
    """
    out = BUILD / "faster-shapes"
    report = read_report(out)
    accepted = [one for one in report.of("unet") if one.status == "accepted"]
    truth = _speeds(_raced(out, report, accepted, Effort(least=40, most=40, seconds=600.0)))
    best = max(truth, key=truth.__getitem__)
    contenders = [one for one in accepted if truth.get(one.candidate.key, 0.0) >= _CONTENDS * truth[best]]
    shares = []
    for repeat in range(arguments.repeats):
        raced = _raced(out, report, contenders, Effort(), with_final=True)
        chosen = best_of(raced, "latency")
        assert chosen
        shares.append(truth[chosen.candidate.key] / truth[best])
        print(f"{repeat + 1}: {chosen.candidate.name}: {shares[-1]:.3f} of the best", flush=True)
    within = sum(share >= _WITHIN for share in shares)
    name = report.trial("unet", best).candidate.name
    told = {"candidates": len(accepted), "contenders": len(contenders), "truth": truth}
    record("choice", {"best": name, "shares": shares, "within": within, **told})
    print(f"within 5 % of the best in {within} of {len(shares)} repeats")


def _speeds(trials: list[Trial]) -> dict[str, float]:
    """How many times as fast as the baseline, by key."""
    return {one.candidate.key: one.ratio.value for one in trials if one.ratio and one.status == "accepted"}


def _raced(
    out: Path,
    report: Report,
    trials: list[Trial],
    effort: Effort,
    baseline: Candidate | None = None,
    with_final: bool = False,
) -> list[Trial]:
    """The trials' candidates, built already, raced anew; against the sweep's baseline, or this one. It comes first."""
    bench = Bench(
        folder=out / TRIALS / "unet" / "again",
        made=out / TRIALS / "unet" / MADE_FOLDER,
        root=out,
        graph=out / original(out)["unet"].graph,
        probes=out / TRIALS / "unet" / PROBES,
        bounds=replace(report.bounds, min_psnr=None, min_ssim=None),  # no pictures are drawn here
        effort=effort,
    )
    baseline = baseline or report.trial("unet", report.baselines["unet"]).candidate
    first, reference = attempt(baseline, bench, None)
    assert reference
    try:
        others = [trial.candidate for trial in trials if trial.candidate != baseline]
        raced = [first, *(attempt(candidate, bench, reference)[0] for candidate in others)]
        again = {one.candidate.key: one for one in final(raced, bench, reference)} if with_final else {}
    finally:
        reference.subject.kill()
    return [again.get(one.candidate.key, one) for one in raced]


@dataclass(frozen=True, slots=True)
class Swept:
    """Seconds of a sweep, and the most memory that it and all its processes held at once."""

    seconds: float
    peak_bytes: int


def _sweep(source: str, out: Path, *options: str) -> Swept:
    command = [sys.executable, "-m", "stillhouse", "accelerate", source, "-o", str(out), *options]
    began, peak = perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            sleep(_GLANCE)
    if process.returncode:
        sys.exit(process.returncode)
    return Swept(perf_counter() - began, peak)


def _judged(model: str, captions: int, *options: str) -> dict[str, Any]:
    """What `stillhouse judge` says of a model at its own defaults."""
    file = BUILD / "judged.json"
    steps = str(_steps(model))
    command = [sys.executable, "-m", "stillhouse", "judge", model, "--captions", str(captions), "--steps", steps]
    subprocess.run([*command, "--json", str(file), *options], check=True)
    judged: dict[str, Any] = json.loads(file.read_text())
    return judged


def _steps(model: str) -> int:
    from stillhouse.models.load import find
    from stillhouse.models.manifest import read_manifest

    return read_manifest(find(model)).defaults.steps


def _slim(report: Report) -> Report:
    """The report without paths of files that are not kept."""
    slim = [
        replace(
            trial,
            log=None,
            reproduce=None,
            artefact=None,
            graph=None,
            pictures=replace(trial.pictures, files=()) if trial.pictures else None,
        )
        for trial in report.trials
    ]
    return replace(report, trials=tuple(slim))


_WHICH: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "shapes": _shapes,
    "sd15": _sd15,
    "vanilla": _vanilla,
    "choice": _choice,
}

if __name__ == "__main__":
    main()
