"""`stillhouse generate PROMPT...`: generate images from prompts."""

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
from stillhouse.cli.generate_images import generate_images, resolve_output_paths
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import show_progress
from stillhouse.core import ImageRequest, ImageResult
from stillhouse.images.contact_sheet import contact_sheet
from stillhouse.images.files import describe_request, read_mask, read_picture, write_png

_FIRST_FIELDS = ("prompt", "seed", "steps")


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse generate` to its argument parser.

    Sampling options that the user does not give take the values of the model's manifest.
    """
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="prompt; one or more")
    add_model_options(parser)
    parser.add_argument("--steps", type=integer, metavar="N", help="number of sampler steps")
    parser.add_argument("--guidance", type=number, metavar="W", help="guidance scale; 1: no guidance")
    parser.add_argument("--seed", type=integer, default=0, metavar="S", help="seed of the first image; default: 0")
    parser.add_argument(
        "--count",
        type=positive_integer,
        default=1,
        metavar="N",
        help="images per prompt, with seeds S, S+1...; default: 1",
    )
    parser.add_argument("--sampler", metavar="NAME", help="sampler: ddim, euler, dpmpp_2m, ...")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="negative prompt")
    parser.add_argument(
        "--size", type=parse_dimensions, default=(None, None), metavar="WxH", help="image size in pixels"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="input image")
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="mask; bright pixels of the input image are repainted"
    )
    parser.add_argument("--strength", type=number, metavar="X", help="denoising strength, above 0 up to 1")
    parser.add_argument(
        "--out",
        type=png_or_directory,
        default=Path(),
        metavar="FILE_OR_DIR",
        help="a .png file or a directory; with several images the file is the contact sheet; default: .",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")


def run(arguments: Namespace) -> int:
    """Generate the requested images, write each as a PNG as soon as it is finished, and print its path.

    Several images are also joined in a contact sheet. The returned exit code is 0.
    """
    pipeline = open_pipeline(arguments.model, arguments)
    requests = [pipeline.resolve(request) for request in _image_requests(arguments)]
    paths = resolve_output_paths(arguments.out, [resolved.request for resolved in requests])
    results = []
    with show_progress() as on_progress:
        for path, result in zip(paths.images, generate_images(pipeline, requests, on_progress), strict=True):
            write_png(path, result.image, result.request, pipeline.manifest.name)
            print(_format_json(path, result) if arguments.json else _format_line(path, result), flush=True)
            results.append(result)
    if paths.sheet:
        labels = [_label(result.request, arguments.count) for result in results]
        write_png(paths.sheet, contact_sheet([result.image for result in results], labels))
        if not arguments.json:
            print(f"{paths.sheet}  all {len(results)} images")
    return 0


def _image_requests(arguments: Namespace) -> Iterator[ImageRequest]:
    width, height = arguments.size
    image = read_picture(arguments.image) if arguments.image else None
    mask = read_mask(arguments.mask) if arguments.mask else None
    for prompt in arguments.prompts:
        for offset in range(arguments.count):
            yield ImageRequest(
                prompt,
                negative_prompt=arguments.negative_prompt,
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
    fields = describe_request(result.request)
    first = {name: fields.pop(name) for name in _FIRST_FIELDS}
    return json.dumps({"file": str(path), **first, "seconds": round(result.seconds, 4), **fields})


def _format_line(path: Path, result: ImageResult) -> str:
    return f"{path}  seed {result.request.seed}, {result.request.steps} steps, {result.seconds:.2f} s"


def _label(request: ImageRequest, count: int) -> str:
    return request.prompt if count == 1 else f"{request.prompt}, seed {request.seed}"
