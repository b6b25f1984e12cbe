"""What distillation cost and gained: `python -m benchmarks.distill STUDENT...` writes results/distill.json.

The same as `stillhouse judge STUDENT... --against shapes`, beside what learning took, out of the students' manifests.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.record import record
from stillhouse.core import ImageRequest
from stillhouse.distill.evaluation.comparison import Way, captions_of_shapes, student_of
from stillhouse.distill.evaluation.evaluation_report import judge_students, lead
from stillhouse.pipelines.load import load

STEPS = 35


def main() -> None:
    """Compare, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="names of embedded students, or pipeline directories")
    parser.add_argument("--captions", type=int, default=1000)
    arguments = parser.parse_args()

    def progress(name: str, done: int, total: int) -> None:
        print(f"\r{name}: {done} of {total}", end="", file=sys.stderr, flush=True)

    teacher = load("shapes")
    asked = ImageRequest("", steps=STEPS)
    opened = [load(Path(name) if Path(name).is_dir() else name) for name in arguments.students]
    students = [student_of(pipeline, teacher.manifest.defaults.guidance) for pipeline in opened]
    first = Way(f"teacher, {STEPS} steps", teacher, asked)
    verdict, _ = judge_students(first, students, captions_of_shapes(arguments.captions), progress)
    print(f"\n{lead(verdict)}", file=sys.stderr)
    learnt = {student.name: student.pipeline.manifest.evidence.get("distill") for student in students}
    record("distill", {"verdict": asdict(verdict), "learnt": learnt})


if __name__ == "__main__":
    main()
