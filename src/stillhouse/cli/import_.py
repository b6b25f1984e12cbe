"""`stillhouse import SOURCE -o DIR`: convert a diffusers model to a pipeline that needs no torch."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.cli.progress import show_progress
from stillhouse.convert.import_model import ImportOptions, import_model


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse import` to its argument parser."""
    parser.add_argument("source", metavar="SOURCE", help="a diffusers directory, or owner/name on the hub")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="pipeline directory to create")
    parser.add_argument("--name", help="name of the pipeline; default: the directory's name")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="LoRA to fuse; repeatable")
    parser.add_argument(
        "--dtype", metavar="NAME", help="precision on disk: float32, float16 or bfloat16; default: as stored"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing pipeline")


def run(arguments: Namespace) -> int:
    """Convert the diffusers model, write the pipeline, print its directory and size, and return exit code 0."""
    options = ImportOptions(
        name=arguments.name, loras=tuple(arguments.lora), dtype=arguments.dtype, force=arguments.force
    )
    with show_progress() as on_progress:
        manifest = import_model(arguments.source, arguments.out, options, on_progress)
    size = sum(record.bytes for record in manifest.files.values())
    print(f"{arguments.out}  {manifest.family}, {size / 1e6:.0f} MB")
    print(f'  stillhouse generate "your prompt" --model {arguments.out}')
    return 0
