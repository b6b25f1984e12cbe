"""`stillhouse demo`: generate images of twelve prompts outside the training set, and join them in a contact sheet.

Each prompt gives two images: one by the embedded model (the model that this package contains), and one by its distilled
student of fewer steps.
"""

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
from stillhouse.images.files import write_png

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
    """Add the options of `stillhouse demo` to its argument parser."""
    parser.add_argument(
        "--out",
        type=png_file,
        default=Path("demo.png"),
        metavar="FILE",
        help="contact sheet to write; default: demo.png",
    )
    add_engine_options(parser)


def run(arguments: Namespace) -> int:
    """Write the contact sheet, print the seconds per image and a command to try, and return exit code 0."""
    generated = {name: _generate(name, arguments) for name in (TEACHER, STUDENT)}
    pairs = zip(*(images for images, _ in generated.values()), strict=True)
    write_png(arguments.out, contact_sheet([_join_pair(*pair) for pair in pairs], PROMPTS))
    left, right = (description for _, description in generated.values())
    print(f"{arguments.out}: {len(PROMPTS)} prompts; left: {left}; right: {right}")
    print(f'try: {_program()} generate "{SUGGESTION}"')
    return 0


def _generate(name: str, arguments: Namespace) -> tuple[list[Picture], str]:
    """Generate an image of each of the twelve prompts with a model.

    Args:
        name: name of the model, one that this package contains.
        arguments: options of the command line.

    Returns:
        the images, and a text that names the model, its steps and the seconds per image.
    """
    pipeline = open_pipeline(name, arguments)
    requests = [pipeline.resolve(ImageRequest(prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    # The first image is generated before timing begins, because this call also loads the networks.
    list(generate_images(pipeline, requests[:1], lambda what, done, total: None))
    began = perf_counter()
    with show_progress() as on_progress:
        images = [result.image for result in generate_images(pipeline, requests, on_progress)]
    seconds = (perf_counter() - began) / len(images)
    return images, f"{name} in {requests[0].request.steps} steps, {seconds:.2f} s per image"


def _join_pair(left: Picture, right: Picture) -> Picture:
    """Return two images of equal height side by side, enlarged, with a white gap between them."""
    first, second = (np.kron(image, np.ones((_SCALE, _SCALE, 1), np.uint8)) for image in (left, right))
    strip = np.full((first.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([first, strip, second], axis=1)


def _program() -> str:
    """Return the command with which the user can call this program again.

    The command is the relative path by which the program was called, else "stillhouse".
    """
    typed = Path(sys.argv[0])
    return str(typed) if typed.name == "stillhouse" and not typed.is_absolute() else "stillhouse"
