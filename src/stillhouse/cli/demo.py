"""`stillhouse demo`: twelve prompts that training never saw, drawn by the embedded model and by its student."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import perf_counter

import numpy as np

from stillhouse.cli.arguments import add_engine_options, png_file
from stillhouse.cli.draw import generate_images
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import show_progress
from stillhouse.core import ImageRequest, Picture
from stillhouse.images.contact_sheet import contact_sheet
from stillhouse.images.png import write_png

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


TEACHER, STUDENT = "shapes", "shapes-3"
_SCALE, _GAP = 3, 6


def declare(parser: ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument("--out", type=png_file, default=Path("demo.png"), metavar="FILE", help="the sheet")
    add_engine_options(parser)


def run(arguments: Namespace) -> int:
    """Draw the sheet, and say how long that took and how to go on."""
    drawn = {name: _generate(name, arguments) for name in (TEACHER, STUDENT)}
    pairs = zip(*(pictures for pictures, _ in drawn.values()), strict=True)
    write_png(arguments.out, contact_sheet([_join_pair(*pair) for pair in pairs], PROMPTS))
    left, right = (told for _, told in drawn.values())
    print(f"{arguments.out}: {len(PROMPTS)} prompts, by {left} (left), and by {right} (right)")
    print(f'now yours: {_program()} generate "{SUGGESTION}"')
    return 0


def _generate(name: str, arguments: Namespace) -> tuple[list[Picture], str]:
    """A picture for each prompt, and how long they took."""
    pipeline = open_pipeline(name, arguments)
    requests = [pipeline.resolve(ImageRequest(prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    list(generate_images(pipeline, requests[:1], lambda what, done, total: None))  # loaded, before the clock runs
    began = perf_counter()
    with show_progress() as report:
        pictures = [result.image for result in generate_images(pipeline, requests, report)]
    seconds = (perf_counter() - began) / len(pictures)
    return pictures, f"{name} in {requests[0].request.steps} steps, {seconds:.2f} s each"


def _join_pair(left: Picture, right: Picture) -> Picture:
    """Both, enlarged, with a strip of white between them."""
    first, second = (np.kron(one, np.ones((_SCALE, _SCALE, 1), np.uint8)) for one in (left, right))
    strip = np.full((first.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([first, strip, second], axis=1)


def _program() -> str:
    """The command as it was typed, where that works from here; else its name."""
    typed = Path(sys.argv[0])
    return str(typed) if typed.name == "stillhouse" and not typed.is_absolute() else "stillhouse"
