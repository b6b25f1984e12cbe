"""A whole guided picture of 3 steps at Stable Diffusion 1.5's size, before and after `stillhouse accelerate`.

`python -m benchmarks.sd15_picture` imports a pipeline with random weights, accelerates all its networks together, and
then times two pipelines in turns, each in a process of its own: onnxruntime in f32 as it comes, and the accelerated
one. An interrupted sweep resumes; `time` repeats only the timing.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.pipeline_process import pipeline_process
from benchmarks.record import write_results
from stillhouse.accelerate.calibration.prompts import PROMPTS
from stillhouse.accelerate.evaluation.candidate_messages import Generate, TimePictures
from stillhouse.accelerate.evaluation.candidate_process import CandidateProcess
from stillhouse.accelerate.evaluation.sample_images import read_candidate_samples
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import read_report
from stillhouse.accelerate.workspace import f32_components
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise
from stillhouse.measure.image_metrics import psnr, ssim
from stillhouse.pipelines.manifest import Component, read_manifest, write_manifest

NAME = "sd15_picture"
STEPS, ROUNDS = 3, 4
BEFORE, AFTER = "onnxruntime f32", "accelerated"
BUILD = Path("build").absolute()
SOURCE, OUT = BUILD / "sd15-3-steps", BUILD / "faster-sd15-3-steps"
_REQUEST = ImageRequest(PROMPTS[0], seed=0)


def main() -> None:
    """Accelerate the pipeline, and time it before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "time"), default="all")
    parser.add_argument("--budget", default="18m")
    arguments = parser.parse_args()
    if arguments.part == "all":
        prepare_source()
        command = [sys.executable, "-m", "stillhouse", "accelerate", str(SOURCE), "-o", str(OUT), "--memory", "20GiB"]
        subprocess.run([*command, "--budget", arguments.budget], check=True)
    write_results(NAME, {**describe_sweep(), "rows": time_pictures()})


def prepare_source() -> None:
    """Write the pipeline, unless it exists: that of `benchmarks.sd15` with STEPS steps by default."""
    if SOURCE.is_dir():
        return
    folder = BUILD / "sd15"
    if not (folder / "pipeline").is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.sd15", "--keep"], check=True)
    shutil.copytree(folder / "pipeline", SOURCE)
    manifest = read_manifest(SOURCE)
    write_manifest(SOURCE, replace(manifest, defaults=replace(manifest.defaults, steps=STEPS, sampler="ddim")))


def describe_sweep() -> dict[str, Any]:
    """Return what the report says: the choice, its claimed speed-up, and how many candidates were measured."""
    report = read_report(OUT)
    chosen = {
        component: next(trial for trial in report.trials_of(component) if trial.candidate.key == key)
        for component, key in report.chosen.items()
    }
    claimed = chosen[PIPELINE].ratio if PIPELINE in chosen else None
    return {
        "seconds": report.seconds,
        "budget": report.budget,
        "chosen": {
            component: {
                "name": trial.candidate.name,
                "ratio": asdict(trial.ratio) if trial.ratio else None,
                "sqnr": trial.worst_fidelity.sqnr if trial.worst_fidelity else None,
            }
            for component, trial in chosen.items()
        },
        "claimed": asdict(claimed) if claimed else None,
        "measured": {
            component: sum(trial.ratio is not None for trial in report.trials_of(component))
            for component in report.baselines
        },
        "activities": dict(report.activities),
    }


def time_pictures() -> dict[str, Any]:
    """Generate one picture with each pipeline, then time all of them in turns; return times and errors by name."""
    pipelines: Mapping[str, tuple[Path, Mapping[str, Component]]] = {
        BEFORE: (SOURCE, f32_components(OUT)),
        AFTER: (OUT, read_manifest(OUT).components),  # without components, the networks would be the original ones
    }
    with ExitStack() as stack:
        processes = {}
        for name, (directory, components) in pipelines.items():
            folder = BUILD / NAME / name.replace(" ", "-")
            processes[name] = pipeline_process(folder, directory, components, read_manifest(directory).defaults)
            stack.callback(processes[name].kill)
            processes[name].start()
            processes[name].call(Generate((_REQUEST,), 1), timeout=900.0)
        timers = {name: _timer(process) for name, process in processes.items()}
        seconds = run_interleaved(timers, ROUNDS)
        peaks = {name: process.peak_bytes for name, process in processes.items()}
        pictures = {name: read_candidate_samples(process.folder).pictures[0] for name, process in processes.items()}
    return {
        name: {
            "seconds": asdict(summarise(seconds[name])),
            "ratio": asdict(paired_ratio(seconds[BEFORE], seconds[name])),
            "psnr": psnr(pictures[BEFORE], pictures[name]),
            "ssim": ssim(pictures[BEFORE], pictures[name]),
            "peak_bytes": peaks[name],
        }
        for name in pipelines
    }


def _timer(process: CandidateProcess) -> Any:
    return lambda: process.call(TimePictures(_REQUEST, 1), timeout=900.0)


def table(results: Mapping[str, Any]) -> str:
    """Return the table of the documents, and sentences about the sweep."""
    rows = [
        [
            name,
            f"{row['seconds']['median']:.1f}",
            f"**{row['ratio']['value']:.2f}x** ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})",
            "equal" if row["psnr"] >= 99 else f"{row['psnr']:.1f} dB, {row['ssim']:.3f}",
            f"{row['peak_bytes'] / 2**30:.1f} GiB",
        ]
        for name, row in results["rows"].items()
    ]
    head = [f"one guided picture of {STEPS} steps, 512x512", "seconds", "against onnxruntime", "PSNR, SSIM", "memory"]
    measured = ", ".join(f"{count} of the {component}" for component, count in results["measured"].items())
    chosen = "; ".join(f"{component}: {item['name']}" for component, item in results["chosen"].items())
    return (
        f"{markdown_table(head, rows)}\n`stillhouse accelerate` took {results['seconds'] / 60:.1f} of its "
        f"{results['budget'] / 60:.0f} minutes and measured {measured}. Chosen: {chosen}.\n"
    )


if __name__ == "__main__":
    main()
