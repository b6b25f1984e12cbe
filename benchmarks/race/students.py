"""Pictures of students against diffusers' of 35 guided steps: `python -m benchmarks.race.students`.

A student needs one row an evaluation, since guidance is inside of it, and 1 or 3 steps. Its speed is that of the
accelerated pipeline with so many steps and no guidance; whether its pictures are good, random weights cannot say. The
files are those of `python -m benchmarks.race`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.race.linked_pipeline import link, link_pipeline
from benchmarks.race.subject import ACCELERATED, BUILD, STUDENT, STUDENT_TINY
from benchmarks.race.subject_process import SubjectProcess
from benchmarks.race.subjects import EXACT, STUDENTS
from benchmarks.record import write_results
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.pipelines.roles import DECODER, DENOISER

NAME = "race_students"
TEACHER_STEPS, STEPS, ROUNDS = 35, (3, 1), 5
WIDTH = 64
"""Channels of the tiny decoder."""
PROMPT = "a photograph of an astronaut riding a horse"


def main() -> None:
    """Time diffusers once, between two halves of the students' pictures, and write the results."""
    prepare()
    processes = {name: SubjectProcess(name) for name in STUDENTS}
    seconds: dict[str, dict[int, list[float]]] = {name: {steps: [] for steps in STEPS} for name in STUDENTS}
    teacher = SubjectProcess(EXACT)
    try:
        teacher.open()
        _generate(teacher, 1)
        for process in processes.values():
            process.open()
            _generate(process, 1)
        for _ in range(ROUNDS):
            _time_round(processes, seconds)
        exact = _generate(teacher, TEACHER_STEPS)
        for _ in range(ROUNDS):
            _time_round(processes, seconds)
    finally:
        for process in (teacher, *processes.values()):
            process.close()
    rows = {name: {str(steps): found for steps, found in taken.items()} for name, taken in seconds.items()}
    results = {"teacher": {"name": EXACT, "steps": TEACHER_STEPS, "seconds": exact}, "rows": rows}
    write_results(NAME, results)
    print(students_table(results))


def prepare() -> None:
    """Write the students' pipelines: the accelerated one opened for one row, also with a tiny decoder."""
    from stillhouse.distill.student import write_decoder
    from stillhouse.distill.training.decoder import TinyDecoder

    manifest = read_manifest(ACCELERATED)
    one_row = replace(manifest.components[DENOISER], streams=1, static=True, rows=(1,))
    link_pipeline(ACCELERATED, STUDENT, {DENOISER: one_row})
    with TemporaryDirectory(dir=BUILD) as folder:
        made = Path(folder, "pipeline")
        copytree(ACCELERATED, made, copy_function=link)
        decoder = write_decoder(TinyDecoder(manifest.latent, WIDTH), manifest.latent.channels, made)
        tiny = replace(decoder, backend="openvino", precision="bf16", static=True, rows=(1,))
        link_pipeline(made, STUDENT_TINY, {DENOISER: one_row, DECODER: tiny})


def _time_round(processes: Mapping[str, SubjectProcess], seconds: Mapping[str, dict[int, list[float]]]) -> None:
    for name, process in processes.items():
        for steps in STEPS:
            seconds[name][steps].append(_generate(process, steps))


def _generate(process: SubjectProcess, steps: int) -> float:
    path = BUILD / "pictures" / "student.npy"
    return process.generate(PROMPT, steps, path).seconds


def students_table(results: Mapping[str, Any]) -> str:
    """Return seconds and gain of each student."""
    teacher = results["teacher"]
    rows = [[f"{teacher['name']}, {teacher['steps']} guided steps", f"{teacher['seconds']:.1f}", ""]]
    for name, taken in results["rows"].items():
        for steps, found in taken.items():
            gains = [teacher["seconds"] / value for value in (median(found), max(found), min(found))]
            gain = f"**{gains[0]:.0f}x** ({gains[1]:.0f} to {gains[2]:.0f})"
            rows.append([f"{name}, {steps} step{'s' if steps != '1' else ''}", f"{median(found):.2f}", gain])
    return markdown_table(["512x512", "seconds", "faster by, of one picture of diffusers"], rows)


if __name__ == "__main__":
    main()
