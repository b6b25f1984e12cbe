"""How well the embedded model draws: `python -m benchmarks.judge` writes results/judge.json.

The same as `stillhouse judge shapes`, kept with the machine and the versions it was taken on, and written into the
embedded model's manifest as its evidence.
"""

import argparse
import sys
from dataclasses import asdict, replace

import stillhouse
from benchmarks.record import record
from stillhouse.core import ImageRequest
from stillhouse.models.manifest import read_manifest, write_manifest
from stillhouse.models.shapes.judge import judge


def main() -> None:
    """Judge and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=35)
    arguments = parser.parse_args()

    def progress(done: int) -> None:
        print(f"\r{done} of {arguments.captions}", end="", file=sys.stderr, flush=True)

    pipeline = stillhouse.load("shapes")
    judged = judge(pipeline, ImageRequest("", steps=arguments.steps), arguments.captions, progress)
    print(file=sys.stderr)
    record("judge", {"judgement": asdict(judged)})
    manifest = read_manifest(pipeline.directory, verify=True)
    evidence = {**manifest.evidence, "judge": asdict(judged)}
    write_manifest(pipeline.directory, replace(manifest, evidence=evidence))


if __name__ == "__main__":
    main()
