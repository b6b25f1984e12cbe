"""`stillhouse import SOURCE -o DIR`: a diffusers model becomes a pipeline that needs no torch."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.cli.progress import show_progress
from stillhouse.convert.import_model import ImportOptions, import_model


def declare(parser: ArgumentParser) -> None:
    """The options of `import`."""
    parser.add_argument("source", metavar="SOURCE", help="a diffusers directory, or owner/name on the hub")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the pipeline directory to make")
    parser.add_argument("--name", help="what to call it; default: the directory's name")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="a LoRA to fuse into it; may be repeated"
    )
    parser.add_argument("--dtype", metavar="NAME", help="float32, float16 or bfloat16 on disk; default: as stored")
    parser.add_argument("--force", action="store_true", help="replace a pipeline that is there")


def run(arguments: Namespace) -> int:
    """Import the model and say what was made."""
    options = ImportOptions(
        name=arguments.name, loras=tuple(arguments.lora), dtype=arguments.dtype, force=arguments.force
    )
    with show_progress() as report:
        manifest = import_model(arguments.source, arguments.out, options, report)
    size = sum(record.bytes for record in manifest.files.values())
    print(f"{arguments.out}  {manifest.family}, {size / 1e6:.0f} MB")
    print(f'  stillhouse generate "your prompt" --model {arguments.out}')
    return 0
