"""`stillhouse generate PROMPT...`: pictures from prompts."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from stillhouse.cli.arguments import (
    add_model_options,
    integer,
    number,
    parse_dimensions,
    png_or_directory,
    positive_integer,
)
from stillhouse.cli.draw import generate_images, resolve_output_paths
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import show_progress
from stillhouse.core import ImageRequest, ImageResult
from stillhouse.images.contact_sheet import contact_sheet
from stillhouse.images.png import describe_request, read_mask, read_picture, write_png

_FIRST_FIELDS = ("prompt", "seed", "steps")


def declare(parser: ArgumentParser) -> None:
    """The options of `generate`; what is left out is as the model's manifest says."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw; several give several pictures")
    add_model_options(parser)
    parser.add_argument("--steps", type=integer, metavar="N", help="sampler steps")
    parser.add_argument(
        "--guidance", type=number, metavar="W", help="how strictly to follow the prompt; 1: no guidance"
    )
    parser.add_argument("--seed", type=integer, default=0, metavar="S", help="of the first picture; default: 0")
    parser.add_argument(
        "--count", type=positive_integer, default=1, metavar="N", help="pictures of each prompt, seeds S, S+1..."
    )
    parser.add_argument("--sampler", metavar="NAME", help="ddim, euler, dpmpp_2m, ...")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")
    parser.add_argument("--size", type=parse_dimensions, default=(None, None), metavar="WxH", help="in pixels")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to start from")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="where to repaint the image: where this is bright")
    parser.add_argument("--strength", type=number, metavar="X", help="how far to leave the image, above 0 up to 1")
    parser.add_argument(
        "--out",
        type=png_or_directory,
        default=Path(),
        metavar="FILE_OR_DIR",
        help="a .png file, or a directory; of several pictures the file is the contact sheet; default: here",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")


def run(arguments: Namespace) -> int:
    """Draw every picture, write it, and say where it is."""
    pipeline = open_pipeline(arguments.model, arguments)
    requests = [pipeline.resolve(request) for request in _image_requests(arguments)]
    where = resolve_output_paths(arguments.out, [resolved.request for resolved in requests])
    results = []
    with show_progress() as report:
        for path, result in zip(where.images, generate_images(pipeline, requests, report), strict=True):
            write_png(path, result.image, result.request, pipeline.manifest.name)
            print(_format_json(path, result) if arguments.json else _format_line(path, result), flush=True)
            results.append(result)
    if where.sheet:
        labels = [_label(result.request, arguments.count) for result in results]
        write_png(where.sheet, contact_sheet([result.image for result in results], labels))
        if not arguments.json:
            print(f"{where.sheet}  all {len(results)} pictures")
    return 0


def _image_requests(arguments: Namespace) -> Iterator[ImageRequest]:
    width, height = arguments.size
    image = read_picture(arguments.image) if arguments.image else None
    mask = read_mask(arguments.mask) if arguments.mask else None
    for prompt in arguments.prompts:
        for offset in range(arguments.count):
            yield ImageRequest(
                prompt,
                negative_prompt=arguments.negative,
                seed=arguments.seed + offset,
                steps=arguments.steps,
                guidance=arguments.guidance,
                sampler=arguments.sampler,
                width=width,
                height=height,
                image=image,
                mask=mask,
                strength=arguments.strength,
            )


def _format_json(path: Path, result: ImageResult) -> str:
    told = describe_request(result.request)
    first = {name: told.pop(name) for name in _FIRST_FIELDS}
    return json.dumps({"file": str(path), **first, "seconds": round(result.seconds, 4), **told})


def _format_line(path: Path, result: ImageResult) -> str:
    return f"{path}  seed {result.request.seed}, {result.request.steps} steps, {result.seconds:.2f} s"


def _label(request: ImageRequest, count: int) -> str:
    return request.prompt if count == 1 else f"{request.prompt}, seed {request.seed}"
