"""The race: one picture of Stable Diffusion 1.5's sizes by every engine, timed in turns with the accelerated pipeline.

`python -m benchmarks.race` needs `pip install '.[race]'`, ten gigabytes of disk and about two hours on two cores. It
prepares the files, opens one subject after the other beside the accelerated pipeline, and writes the results after each
subject; another call goes on with those that are missing. A subject that is not installed is a row with its reason.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.race.prepare import prepare
from benchmarks.race.subject import BUILD
from benchmarks.race.subject_process import Generated, SubjectFailed, SubjectProcess, file_stem
from benchmarks.race.subjects import EXACT, REFERENCE, SUBJECTS, Entry
from benchmarks.record import read_earlier, write_results
from stillhouse.measure.clock import paired_ratio
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.measure.image_metrics import psnr
from stillhouse.workers.process import WorkerError

NAME = "race"
PROMPT = "a photograph of an astronaut riding a horse"
COMPARED_STEPS = 20
"""Number of steps of the picture whose PSNR is measured."""


def main() -> None:
    """Prepare the files, and time the subjects that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[name for name in SUBJECTS if name != REFERENCE])
    parser.add_argument("--again", action="store_true", help="time subjects that have results, too")
    parser.add_argument("--budget", default="20m", help="of `stillhouse accelerate`")
    arguments = parser.parse_args()
    prepare(arguments.budget)
    rows = dict(read_earlier(NAME).get("rows", {}))
    for name in arguments.only or [name for name in SUBJECTS if name != REFERENCE]:
        if arguments.again or name not in rows:
            rows[name] = time_subject(name)
            ordered = {name: rows[name] for name in SUBJECTS if name in rows}
            write_results(NAME, {"rows": ordered})
            print(f"{name}: {rows[name].get('reason') or describe(rows[name])}", flush=True)


def describe(row: Mapping[str, Any]) -> str:
    """Return one line about a subject's times."""
    pictures = ", ".join(f"{steps} steps {picture['seconds']:.1f} s" for steps, picture in row["pictures"].items())
    return f"{row['evaluation']:.2f} s an evaluation; {pictures}"


def time_subject(name: str) -> dict[str, Any]:
    """Return the times of a subject and of the accelerated pipeline in turns; a reason where the subject fails."""
    subject, reference = SubjectProcess(name), SubjectProcess(REFERENCE)
    try:
        opened, opened_reference = subject.open(), reference.open()
        first = {process: _generate(process, 1, 0) for process in (subject, reference)}
        turns = {
            steps: [_turn(subject, reference, steps, place) for place in range(rounds)]
            for steps, rounds in SUBJECTS[name].rounds.items()
        }
        return {
            "precision": opened.precision,
            "load_seconds": opened.seconds,
            "first_picture_seconds": first[subject].seconds,
            "reference_load_seconds": opened_reference.seconds,
            "reference_first_picture_seconds": first[reference].seconds,
            **_summarise(turns),
            "peak_bytes": subject.peak_bytes(),
            "reference_peak_bytes": reference.peak_bytes(),
            **_fidelity(subject, SUBJECTS[name]),
            "reference": {"precision": opened_reference.precision, **_fidelity(reference, SUBJECTS[REFERENCE])},
        }
    except (SubjectFailed, WorkerError) as error:
        return {"reason": str(error)}
    finally:
        subject.close()
        reference.close()


def _generate(process: SubjectProcess, steps: int, place: int) -> Generated:
    """Generate picture number `place`; its prompt is new, so that no engine finds it in a cache."""
    path = picture_path(process.name, steps, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    return process.generate(f"{PROMPT}, number {steps} {place}", steps, path)


def picture_path(name: str, steps: int, place: int) -> Path:
    """Return the path of a subject's picture, an .npy file."""
    return BUILD / "pictures" / f"{file_stem(name)}-{steps}-{place}.npy"


def _turn(subject: SubjectProcess, reference: SubjectProcess, steps: int, place: int) -> tuple[Generated, Generated]:
    """Generate one picture with each of the two, the second one first in every other turn."""
    processes = (subject, reference)
    made = {process: _generate(process, steps, place + 1) for process in processes[:: -1 if place % 2 else 1]}
    return made[subject], made[reference]


def _summarise(turns: Mapping[int, list[tuple[Generated, Generated]]]) -> dict[str, Any]:
    """Return medians of the subject's times, and the ratio of its times to the reference's in the same turns."""
    pairs = [pair for made in turns.values() for pair in made]
    evaluations = [[median(picture.evaluations) for picture in side] for side in zip(*pairs, strict=True)]
    decodings = [[picture.decoding for picture in side if picture.decoding] for side in zip(*pairs, strict=True)]
    return {
        "evaluation": median(evaluations[0]),
        "evaluation_ratio": asdict(paired_ratio(evaluations[0], evaluations[1])),
        "decoding": median(decodings[0]) if decodings[0] else None,
        "reference_evaluation": median(evaluations[1]),
        "reference_decoding": median(decodings[1]),
        "pictures": {str(steps): _summarise_pictures(made) for steps, made in turns.items()},
    }


def _summarise_pictures(made: list[tuple[Generated, Generated]]) -> dict[str, Any]:
    own, reference = [pair[0].seconds for pair in made], [pair[1].seconds for pair in made]
    return {
        "seconds": median(own),
        "reference_seconds": median(reference),
        "ratio": asdict(paired_ratio(own, reference)),
        "rounds": len(made),
    }


def _fidelity(subject: SubjectProcess, entry: Entry) -> dict[str, Any]:
    """Return the SQNR of one evaluation and the PSNR of a picture against EXACT, where both exist."""
    exact = BUILD / "pictures" / "exact.npy"
    output = subject.predict()
    if subject.name == EXACT and output is not None:
        np.save(exact, output)
    measured: dict[str, Any] = {}
    if output is not None and exact.exists():
        measured["sqnr"] = compare_tensors(np.load(exact), output).sqnr
    pictures = [picture_path(name, COMPARED_STEPS, 1) for name in (EXACT, subject.name)]
    if entry.same_picture and all(path.exists() for path in pictures):
        measured["psnr"] = psnr(*map(np.load, pictures))
    return measured


if __name__ == "__main__":
    main()
