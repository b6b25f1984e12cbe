"""`stillhouse judge NAME`: how well a model draws the captions of Shapes, as the oracle reads its pictures."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stillhouse.cli.arguments import add_engine, number, positive, whole
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import progress
from stillhouse.cli.table import table
from stillhouse.core import ImageRequest
from stillhouse.models.png import write_file
from stillhouse.models.shapes.judge import Judgement, Share, judge


def declare(parser: ArgumentParser) -> None:
    """The options of `judge`."""
    parser.add_argument("name", metavar="NAME_OR_DIR", help="shapes, or a pipeline that was made from it")
    add_engine(parser)
    parser.add_argument("--captions", type=positive, default=1000, metavar="N", help="held-out captions; default: 1000")
    parser.add_argument("--steps", type=whole, default=35, metavar="N", help="sampler steps; default: 35")
    parser.add_argument("--guidance", type=number, metavar="W", help="default: the model's own")
    parser.add_argument("--sampler", metavar="NAME", help="default: the model's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the judgement there, too")


def run(arguments: Namespace) -> int:
    """Judge, print the table, and keep the figures where that was asked for."""
    pipeline = open_pipeline(arguments.name, arguments)
    asked = ImageRequest("", steps=arguments.steps, guidance=arguments.guidance, sampler=arguments.sampler)
    with progress() as report:
        judgement = judge(pipeline, asked, arguments.captions, lambda done: report("judging", done, arguments.captions))
    print(_told(judgement))
    if arguments.json:
        write_file(arguments.json, (json.dumps(asdict(judgement), indent=2) + "\n").encode())
    return 0


def _told(judgement: Judgement) -> str:
    rows = [
        [name.replace("_", " "), *_share(share), _share(judgement.ceiling[name])[0]]
        for name, share in judgement.scores.items()
    ]
    course = f"{judgement.captions} captions, {judgement.steps} {judgement.sampler} steps"
    return (
        f"{course}, guidance {judgement.guidance:g}, {judgement.seconds:.3f} s per picture\n\n"
        f"{table(['', 'share', '95 % interval', 'autoencoder alone'], rows)}\n\n"
        f"picture against its clean redrawing: {judgement.rerender:.1f} dB"
    )


def _share(share: Share) -> tuple[str, str]:
    return f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"
