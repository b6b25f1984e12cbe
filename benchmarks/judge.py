"""Oracle scores of the embedded models: `python -m benchmarks.judge` writes results/judge.json.

The evaluation is that of `stillhouse judge shapes`. The scores of the model, and those of its shipped students at
their own steps, are also written into their manifests as evidence.
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
    """Evaluate the embedded models and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EMBEDDED, help="evaluate one model; default: all")
    parser.add_argument("--captions", type=int, default=1000)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else EMBEDDED:
        evaluation = _evaluate_model(name, arguments.captions)
        if name == "shapes":
            write_results("judge", {"judgement": asdict(evaluation)})


def _evaluate_model(name: str, captions: int) -> CaptionEvaluation:
    """Evaluate an embedded model and write the scores into its manifest."""

    def progress(done: int) -> None:
        print(f"\r{name}: {done} of {captions}", end="", file=sys.stderr, flush=True)

    pipeline = stillhouse.load(name)
    steps = STEPS if pipeline.manifest.distilled is None else None
    evaluation = evaluate_captions(pipeline, ImageRequest("", steps=steps), captions, progress)
    print(file=sys.stderr)
    manifest = read_manifest(pipeline.directory, verify=True)
    evidence = {**manifest.evidence, "judge": asdict(evaluation)}
    write_manifest(pipeline.directory, replace(manifest, evidence=evidence))
    return evaluation


if __name__ == "__main__":
    main()
