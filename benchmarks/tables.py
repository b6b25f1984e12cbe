"""Tables of the documents, made from results/*.json: `python -m benchmarks.tables` (`--check` changes nothing).

A document marks a table by `<!-- table: NAME -->` ... `<!-- end -->`; the text between them is replaced.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import attention, budgets, levers, sd15_picture, step_caching
from benchmarks.gpu import tables as gpu
from benchmarks.grid import markdown_table
from benchmarks.pipeline_grid import grid_table
from benchmarks.race.grid import ways_table
from benchmarks.race.sdxl import sdxl_table
from benchmarks.race.students import students_table
from benchmarks.race.tables import race_table, summary_table
from benchmarks.real_models import tables as real_models
from benchmarks.record import RESULTS, read_results
from benchmarks.serving import tables as serving
from benchmarks.serving.rate import rate_table
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.distill.evaluation.evaluation_report import (
    LEGEND,
    EvaluationReport,
    evaluation_columns,
    evaluation_rows,
)
from stillhouse.validation import convert

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/measurements.md", "docs/race.md", "docs/speed.md", "docs/gpu.md")
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite the documents, or with --check exit with 1 where one would change."""
    stale = [name for name in DOCUMENTS if (ROOT / name).read_text() != rendered(ROOT / name)]
    if "--check" in sys.argv[1:]:
        sys.exit(f"stale tables in {', '.join(stale)}; run python -m benchmarks.tables" if stale else 0)
    for name in stale:
        (ROOT / name).write_text(rendered(ROOT / name))
        print(f"rewrote {name}")


def rendered(document: Path) -> str:
    """Return the document with its tables made anew; a table without results is marked as not measured."""
    return _MARK.sub(lambda mark: mark[1] + _table(mark[2]) + mark[3], document.read_text())


def _table(name: str) -> str:
    file = _FILES.get(name, name)
    if not (RESULTS / f"{file}.json").exists():
        return "*not measured yet*\n"
    results = read_results(file)
    return _TABLES[name](results) + f"\n*{_environment_line(results)}; `{_COMMANDS[name]}`*\n"


_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "avx512_vnni": "VNNI"}
"""Instruction set extensions that decide which precisions are fast: machines of one name differ in them."""


def _environment_line(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("onnxruntime", "openvino", "torch") if name in versions
    )
    memory = f"{machine['memory'] / 2**30:.0f} GiB"
    extensions = [label for name, label in _INSTRUCTIONS.items() if name in machine["instructions"]]
    return f"{machine['processor']}, {machine['cores']} cores, {memory}, {', '.join(extensions)}; {packages}"


def _speed(results: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['seconds']['median']:.2f}",
            f"{row['seconds']['p95']:.2f}",
            f"**{row['ratio']['value']:.1f}x** ({row['ratio']['low']:.1f} to {row['ratio']['high']:.1f})",
        ]
        for name, row in results["rows"].items()
    ]
    table = markdown_table(["one picture, 35 steps, guidance", "seconds, median", "95 %", "against diffusers"], rows)
    cold = results["cold"]
    return (
        f"{table}\n`import stillhouse` takes {cold['import']['median']:.2f} s; a cold `stillhouse generate` of one "
        f"picture, everything included, {cold['generate']['median']:.1f} s; the first time, when backends are "
        f"chosen and networks compiled, {cold['first']['median']:.1f} s.\n"
    )


def _judge(results: Mapping[str, Any]) -> str:
    judged = results["judgement"]

    def share(score: Mapping[str, float]) -> str:
        return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"

    rows = [
        [name.replace("_", " "), share(judged["scores"][name]), f"{100 * judged['ceiling'][name]['value']:.1f} %"]
        for name in judged["scores"]
    ]
    request = f"{judged['captions']:,} held-out captions, {judged['steps']} {judged['sampler']} steps, guidance"
    return markdown_table(
        [f"{request} {judged['guidance']:g}", "pictures that have it (95 % interval)", "ceiling"], rows
    )


def _oracle(results: Mapping[str, Any]) -> str:
    rows = results["rows"]
    names = list(next(iter(rows.values())))
    table = [[spoilt, *(f"{100 * row[name]:.1f}" for name in names)] for spoilt, row in rows.items()]
    return markdown_table(["spoilt (mean score in %)", *(name.replace("_", " ") for name in names)], table)


def _sd15(results: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{stage['seconds']:.0f}", f"{stage['peak_bytes'] / 2**30:.1f} GiB"]
        for name, stage in results["stages"].items()
    ]
    return markdown_table(["Stable Diffusion 1.5's shape, random weights", "seconds", "peak memory"], rows)


_LOOPS = {"onnxruntime": "plain loop, onnxruntime f32", "openvino": "plain loop, OpenVINO as it comes"}


def _accelerate(results: Mapping[str, Any]) -> str:
    report = results["report"]
    chosen = report["chosen"].get("pipeline")
    whole = [trial for trial in report["trials"] if trial["candidate"]["component"] == "pipeline"]
    rows = []
    for trial in whole:
        candidate = trial["candidate"]
        is_chosen = _candidate_key(trial) == chosen
        if trial["ratio"] and (is_chosen or candidate["recipe"] == "baseline" or not candidate["options"]):
            name = _LOOPS.get(candidate["backend"], "plain loop, chosen networks")
            name += ", without busy waiting" if candidate["options"].get("spinning") == "0" else ""
            changes = [f"{option} {value}" for option, value in sorted(candidate["options"].items())]
            label = ", ".join(changes) or "the plain loop, other networks"
            seconds, ratio = trial["seconds"], trial["ratio"]
            speed = f"**{ratio['value']:.1f}x** ({ratio['low']:.1f} to {ratio['high']:.1f})"
            judged = "chosen" if is_chosen else "" if candidate["options"] else _JUDGED.get(candidate["backend"], "")
            scores = _score_cells(results["judged"], judged)
            rows.append([f"chosen: {label}" if is_chosen else name, f"{seconds['median']:.3f}", speed, *scores])
    captions = results["judged"]["chosen"]["captions"]
    tried = sum(trial["ratio"] is not None for trial in report["trials"])
    summary = f"{len(report['trials'])} candidates, {tried} of them measured, in {results['seconds']:.0f} s."
    scored = [f"all correct, {captions:,} captions", "strict"]
    head = ["the embedded model, one picture", "seconds", "against onnxruntime", *scored]
    return f"{markdown_table(head, rows)}\n{summary}\n"


_PLAIN_LOOP = "plain loop, onnxruntime f32"
_JUDGED = {"onnxruntime": _PLAIN_LOOP, "openvino": "plain loop, openvino defaults"}


def _score_cells(judged: Mapping[str, Any], name: str) -> list[str]:
    """Return both scores of a pipeline, with the points that they are above the plain loop's on the same captions."""
    if name not in judged:
        return ["", ""]
    cells = []
    for score in ("all_correct", "strict"):
        value = 100 * judged[name]["scores"][score]["value"]
        plain = judged.get(_PLAIN_LOOP, {}).get("scores", {}).get(score)
        gain = f" ({value - 100 * plain['value']:+.1f})" if plain and name != _PLAIN_LOOP else ""
        cells.append(f"{value:.1f} %{gain}")
    return cells


def _candidate_key(trial: Mapping[str, Any]) -> str:
    return convert(Candidate, trial["candidate"]).key


def _accelerate_sd15(results: Mapping[str, Any]) -> str:
    rows = []
    for trial in sorted(results["report"]["trials"], key=lambda trial: -(trial["ratio"] or {"value": 0})["value"]):
        seconds, ratio = trial["seconds"], trial["ratio"]
        if ratio:
            sqnr = min(fidelity["sqnr"] for fidelity in trial["fidelity"].values())
            peak = f"{trial['peak_bytes'] / 2**30:.1f} GiB"
            speed = f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            name = convert(Candidate, trial["candidate"]).name
            accuracy = "exact" if sqnr >= 900 else f"{sqnr:.0f} dB"
            rows.append([name, trial["executed"], f"{seconds['median']:.2f}", speed, accuracy, peak, trial["status"]])
    head = ["U-Net of Stable Diffusion 1.5", "ran in", "seconds", "against onnxruntime", "SQNR", "peak memory", ""]
    torch_rows = []
    for trial in results.get("beside_torch", []):
        ratio = trial["ratio"]
        speed = f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
        torch_rows.append([convert(Candidate, trial["candidate"]).name, f"{trial['seconds']['median']:.2f}", speed])
    minutes, memory = results["report"]["seconds"] / 60, results["peak_bytes"] / 2**30
    summary = f"Swept in {minutes:.0f} minutes, all processes together within {memory:.1f} GiB."
    second = markdown_table(["timed once more in turns", "seconds", "against torch, vanilla attention"], torch_rows)
    return f"{markdown_table(head, rows)}\n{summary}\n\n{second}"


def _choice(results: Mapping[str, Any]) -> str:
    shares = sorted(results["shares"])
    raced = f"{results['candidates']}, {results['contenders']} of them in every repeat"
    counts = [raced, str(len(shares)), f"{results['within']} of {len(shares)}"]
    row = [*counts, f"{100 * shares[0]:.1f} %", f"{100 * shares[len(shares) // 2]:.1f} %"]
    return markdown_table(
        ["candidates", "repeats", "within 5 % of the fastest", "worst choice", "median choice"], [row]
    )


def _policies(results: Mapping[str, Any]) -> str:
    head = ["trace", "policy", "free: median", "99 %", "pro: median", "99 %", "promises kept, of free", "of pro"]
    rows, last = [], ""
    for row in results["rows"]:
        times = [f"{row[f'{tier}_{percent}']:.1f}x" for tier in ("free", "pro") for percent in ("p50", "p99")]
        in_time = [f"{100 * row[f'{tier}_kept']:.0f} %" for tier in ("free", "pro")]
        rows.append([row["trace"] if row["trace"] != last else "", row["policy"], *times, *in_time])
        last = row["trace"]
    return f"{markdown_table(head, rows)}\n{results['seeds']} traces of {results['count']:,} pictures each.\n"


def _tick(results: Mapping[str, Any]) -> str:
    rows = [
        [row["policy"], *(f"{row[name]:.0f}" for name in ("p50_us", "mean_us", "p99_us"))] for row in results["rows"]
    ]
    head = [f"policy, {results['waiting']} pictures waiting", "microseconds a tick, median", "mean", "99 %"]
    return markdown_table(head, rows)


def _distill(results: Mapping[str, Any]) -> str:
    report = convert(EvaluationReport, results["report"])
    rows, runs = [], training_stages(results["training"].values())
    for number, run in enumerate(runs, 1):
        initial = run.get("begun")
        initial_number = str(1 + _stage_index(runs, initial)) if initial else ""
        for student in run["students"]:
            scores = ", ".join(f"{_SCORE_NAMES[name]} {value:.1f} dB" for name, value in student["scores"].items())
            steps = "any" if student["timesteps"] is None else str(len(student["timesteps"]))
            cost = [f"{run['items']:,}", f"{student['updates']:,}", f"{student['hours']:.2f}", scores]
            rows.append(
                [
                    str(number),
                    initial_number,
                    student["name"],
                    _METHOD_NAMES.get(student["method"], student["method"]),
                    steps,
                    *cost,
                ]
            )
    columns = ["run", "initialised from", "student", "method", "steps", "samples", "updates", "hours", "latent PSNR"]
    quality = markdown_table(evaluation_columns(report), evaluation_rows(report))
    legend = "Latent PSNR: of the student's final latents against its teacher's, from the same noise and of edits."
    captions = f"{report.caption_count:,} held-out captions. {LEGEND}"
    return f"{quality}\n{captions}\n\n{markdown_table(columns, rows)}\n{legend}\n"


_SCORE_NAMES = {"agreement": "noise", "latent_psnr": "noise", "edits": "edits"}
_METHOD_NAMES = {"walks": "trajectories"}
"""The evidence of the shipped students has former names."""


def training_stages(training: Iterable[Mapping[str, Any] | None]) -> list[Mapping[str, Any]]:
    """Return all stages of training, each after the one that it continues; of stages that two runs share, the longer
    one.
    """
    stages: list[Mapping[str, Any]] = []
    for last in training:
        line: list[Mapping[str, Any]] = []
        while last:
            line.insert(0, last)
            last = last.get("begun")
        for stage in line:
            place = _stage_index(stages, stage)
            if place == len(stages):
                stages.append(stage)
            elif len(stage["students"]) > len(stages[place]["students"]):
                stages[place] = stage
    return stages


def _stage_index(stages: Sequence[Mapping[str, Any]], stage: Mapping[str, Any]) -> int:
    """Return the index of the stage with the same first student; the number of stages where there is none."""
    same = (place for place, other in enumerate(stages) if other["students"][:1] == stage["students"][:1])
    return next(same, len(stages))


def _cost(results: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['seconds']['median']:.3f}" if row["seconds"]["median"] < 1 else f"{row['seconds']['median']:.1f}",
            f"**{row['ratio']['value']:.0f}x** ({row['ratio']['low']:.0f} to {row['ratio']['high']:.0f})",
        ]
        for name, row in results["rows"].items()
    ]
    return markdown_table(["one picture", "seconds, median", "against plain diffusers"], rows)


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "speed": _speed,
    "judge": _judge,
    "oracle": _oracle,
    "sd15": _sd15,
    "accelerate": _accelerate,
    "accelerate_sd15": _accelerate_sd15,
    "sd15_picture": sd15_picture.table,
    "budgets": budgets.table,
    "race": race_table,
    "race_summary": summary_table,
    "race_students": students_table,
    "race_sdxl": sdxl_table,
    "race_grid": ways_table,
    "step_caching": step_caching.caching_table,
    "attention": attention.table,
    "lever_peaks": levers.peaks_table,
    "lever_parts": levers.parts_table,
    "lever_gains": levers.levers_table,
    "choice": _choice,
    "real_models": real_models.models_table,
    "pipeline_grid": grid_table,
    "policies": _policies,
    "tick": _tick,
    "distill": _distill,
    "cost": _cost,
    "cost_sd15": _cost,
    "serving": serving.serving_table,
    "serving_overhead": serving.overhead_table,
    "serving_rate": rate_table,
    "gpu_kernels": gpu.kernels_table,
    "gpu_ladder": gpu.variants_table,
    "gpu_pictures": gpu.pictures_table,
    "gpu_components": gpu.components_table,
    "gpu_batching": gpu.batching_table,
}
_PREFIXES = {"gpu_": "gpu", "lever_": "levers", "race_summary": "race"}
_FILES = {name: file for name in _TABLES for prefix, file in _PREFIXES.items() if name.startswith(prefix)}
"""Tables whose results are in a file of another name."""
_COMMANDS: Mapping[str, str] = {
    "speed": "python -m benchmarks.speed",
    "judge": "python -m benchmarks.judge",
    "distill": "python -m benchmarks.distill",
    "cost": "python -m benchmarks.cost shapes",
    "cost_sd15": "python -m benchmarks.cost sd15",
    "oracle": "python -m benchmarks.oracle",
    "sd15": "python -m benchmarks.sd15",
    "accelerate": "python -m benchmarks.accelerate shapes",
    "accelerate_sd15": "python -m benchmarks.accelerate sd15",
    "sd15_picture": "python -m benchmarks.sd15_picture",
    "budgets": "python -m benchmarks.budgets",
    "race": "python -m benchmarks.race",
    "race_students": "python -m benchmarks.race.students",
    "race_sdxl": "python -m benchmarks.race.sdxl",
    "race_grid": "python -m benchmarks.race.grid",
    "step_caching": "python -m benchmarks.step_caching",
    "attention": "python -m benchmarks.attention",
    "choice": "python -m benchmarks.accelerate choice",
    "real_models": "python -m benchmarks.real_models",
    "pipeline_grid": "python -m benchmarks.pipeline_grid time",
    "policies": "python -m benchmarks.policies",
    "tick": "python -m benchmarks.tick",
    "serving": "python -m benchmarks.serving",
    "serving_overhead": "python -m benchmarks.serving overhead",
    "serving_rate": "python -m benchmarks.serving rate",
    **{name: f"python -m benchmarks.{file}" for name, file in _FILES.items()},
}

if __name__ == "__main__":
    main()
