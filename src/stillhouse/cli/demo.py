"""`stillhouse demo`: a contact sheet of twelve held-out prompts, by the embedded model and its distilled student."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import perf_counter

import numpy as np

from stillhouse.cli.arguments import add_engine_options, png_file
from stillhouse.cli.generate_images import generate_images
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
    """Add the options of `demo`."""
    parser.add_argument(
        "--out",
        type=png_file,
        default=Path("demo.png"),
        metavar="FILE",
        help="contact sheet to write; default: demo.png",
    )
    add_engine_options(parser)


def run(arguments: Namespace) -> int:
    """Generate the contact sheet, print the times and suggest a command."""
    generated = {name: _generate(name, arguments) for name in (TEACHER, STUDENT)}
    pairs = zip(*(images for images, _ in generated.values()), strict=True)
    write_png(arguments.out, contact_sheet([_join_pair(*pair) for pair in pairs], PROMPTS))
    left, right = (description for _, description in generated.values())
    print(f"{arguments.out}: {len(PROMPTS)} prompts; left: {left}; right: {right}")
    print(f'try: {_program()} generate "{SUGGESTION}"')
    return 0


def _generate(name: str, arguments: Namespace) -> tuple[list[Picture], str]:
    """Generate an image per prompt; return the images and a description with the seconds per image."""
    pipeline = open_pipeline(name, arguments)
    requests = [pipeline.resolve(ImageRequest(prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    list(generate_images(pipeline, requests[:1], lambda what, done, total: None))  # warm-up: loads the networks
    began = perf_counter()
    with show_progress() as on_progress:
        images = [result.image for result in generate_images(pipeline, requests, on_progress)]
    seconds = (perf_counter() - began) / len(images)
    return images, f"{name} in {requests[0].request.steps} steps, {seconds:.2f} s per image"


def _join_pair(left: Picture, right: Picture) -> Picture:
    """Enlarge two images and join them with a white gap."""
    first, second = (np.kron(image, np.ones((_SCALE, _SCALE, 1), np.uint8)) for image in (left, right))
    strip = np.full((first.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([first, strip, second], axis=1)


def _program() -> str:
    """Return the program as the user typed it if that works from the current directory, else the program's name."""
    typed = Path(sys.argv[0])
    return str(typed) if typed.name == "stillhouse" and not typed.is_absolute() else "stillhouse"
