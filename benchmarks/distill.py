"""Cost and quality of distillation: `python -m benchmarks.distill STUDENT...` writes results/distill.json.

The evaluation is that of `stillhouse judge STUDENT... --against shapes`; the training cost is read from the students'
manifests.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.record import write_results
from stillhouse.core import ImageRequest
from stillhouse.distill.evaluation.comparison import GenerationSetup, shapes_caption_set, student_setup
from stillhouse.distill.evaluation.evaluation_report import evaluate_students, summarize_evaluation
from stillhouse.pipelines.load import load

STEPS = 35


def main() -> None:
    """Evaluate students against the embedded teacher and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="names of embedded students, or pipeline directories")
    parser.add_argument("--captions", type=int, default=1000)
    arguments = parser.parse_args()

    def progress(name: str, done: int, total: int) -> None:
        print(f"\r{name}: {done} of {total}", end="", file=sys.stderr, flush=True)

    teacher = load("shapes")
    request = ImageRequest("", steps=STEPS)
    opened = [load(Path(name) if Path(name).is_dir() else name) for name in arguments.students]
    students = [student_setup(pipeline, teacher.manifest.defaults.guidance) for pipeline in opened]
    first = GenerationSetup(f"teacher, {STEPS} steps", teacher, request)
    report, _ = evaluate_students(first, students, shapes_caption_set(arguments.captions), progress)
    print(f"\n{summarize_evaluation(report)}", file=sys.stderr)
    training = {student.name: student.pipeline.manifest.evidence.get("distill") for student in students}
    write_results("distill", {"report": asdict(report), "training": training})


if __name__ == "__main__":
    main()
