"""How well the embedded models draw: `python -m benchmarks.judge` writes results/judge.json.

The same as `stillhouse judge shapes`, kept with the machine and the versions it was taken on. It is written into the
model's manifest, too, as its evidence; so is what is found of the students that ship with it, at their own steps.
"""

import argparse
import sys
from dataclasses import asdict, replace

import stillhouse
from benchmarks.record import write_results
from stillhouse.core import ImageRequest
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from stillhouse.shapes.score import CaptionEvaluation, evaluate_captions

STEPS = 35


def main() -> None:
    """Judge and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EMBEDDED, help="this one; default: all")
    parser.add_argument("--captions", type=int, default=1000)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else EMBEDDED:
        judged = _judge_model(name, arguments.captions)
        if name == "shapes":
            write_results("judge", {"judgement": asdict(judged)})


def _judge_model(name: str, captions: int) -> CaptionEvaluation:
    """What is found of an embedded model, which its manifest tells from now on."""

    def progress(done: int) -> None:
        print(f"\r{name}: {done} of {captions}", end="", file=sys.stderr, flush=True)

    pipeline = stillhouse.load(name)
    steps = STEPS if pipeline.manifest.distilled is None else None
    judged = evaluate_captions(pipeline, ImageRequest("", steps=steps), captions, progress)
    print(file=sys.stderr)
    manifest = read_manifest(pipeline.directory, verify=True)
    evidence = {**manifest.evidence, "judge": asdict(judged)}
    write_manifest(pipeline.directory, replace(manifest, evidence=evidence))
    return judged


if __name__ == "__main__":
    main()
