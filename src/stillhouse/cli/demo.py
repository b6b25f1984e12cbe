"""`stillhouse demo`: twelve prompts that training never saw, drawn by the embedded model, on one sheet."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import perf_counter

from stillhouse.cli.arguments import add_engine, picture_file
from stillhouse.cli.draw import draw
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import progress
from stillhouse.core import ImageRequest
from stillhouse.models.png import write_png
from stillhouse.models.sheet import contact_sheet

PROMPTS = (
    "a small cyan circle left of a big blue square on a white background",
    "a big red circle on a yellow background",
    "a purple circle above a blue cross",
    "a small green triangle above a big red square on a blue background",
    "a big black triangle left of a small yellow square on a red background",
    "a small cyan cross on a purple background",
    "a square above a circle on a red background",
    "a white cross above a green circle",
    "a small yellow circle above a big white triangle on a black background",
    "a big blue square",
    "a cross left of a circle on a yellow background",
    "a big red cross left of a small purple triangle on a green background",
)
SUGGESTION = "a big yellow cross below a small red triangle on a blue background"


def declare(parser: ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument("--out", type=picture_file, default=Path("demo.png"), metavar="FILE", help="the sheet")
    add_engine(parser)


def run(arguments: Namespace) -> int:
    """Draw the sheet, and say how long that took and how to go on."""
    pipeline = open_pipeline("shapes", arguments)
    requests = [pipeline.resolve(ImageRequest(prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    began = perf_counter()
    with progress() as report:
        results = list(draw(pipeline, requests, report))
    seconds = (perf_counter() - began) / len(results)
    write_png(arguments.out, contact_sheet([result.image for result in results], PROMPTS))
    print(f"{arguments.out}: {len(results)} pictures, {seconds:.2f} s each ({requests[0].steps} steps, with loading)")
    print(f'now yours: {_program()} generate "{SUGGESTION}"')
    return 0


def _program() -> str:
    """The command as it was typed, where that works from here; else its name."""
    typed = Path(sys.argv[0])
    return str(typed) if typed.name == "stillhouse" and not typed.is_absolute() else "stillhouse"
