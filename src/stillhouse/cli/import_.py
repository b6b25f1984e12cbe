"""`stillhouse import SOURCE -o DIR`: convert a diffusers model to a pipeline that needs no torch."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from stillhouse.cli.progress import show_progress
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.choose_backends import BackendChoice, choose_backends, has_memory, set_known_backends
from stillhouse.pipelines.fastest_component import describe_backend
from stillhouse.pipelines.manifest import Manifest


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
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="choose backends by the kind of processor, without a measurement of at most a minute",
    )


def run(arguments: Namespace) -> int:
    """Convert the diffusers model, write the pipeline, print its directory and size, and return exit code 0."""
    options = ImportOptions(
        name=arguments.name, loras=tuple(arguments.lora), dtype=arguments.dtype, force=arguments.force
    )
    with show_progress() as on_progress:
        manifest = import_model(arguments.source, arguments.out, options, on_progress)
    for line in _choose(arguments.out, manifest, is_measured=not arguments.no_measure):
        print(line, flush=True)
    size = sum(record.bytes for record in manifest.files.values())
    print(f"{arguments.out}  {manifest.family}, {size / 1e6:.0f} MB")
    print(f'  stillhouse generate "your prompt" --model {arguments.out}')
    return 0


def _choose(directory: Path, manifest: Manifest, *, is_measured: bool) -> Iterator[str]:
    """Choose the backends of a new pipeline, and yield sentences about it."""
    machine = read_machine()
    if is_measured and has_memory(directory, manifest, machine):
        yield "measuring backends on this machine for at most a minute (--no-measure: without)"
        yield from map(_describe, choose_backends(directory, manifest))
        return
    backend, precision = set_known_backends(directory, manifest, machine)
    reason = "too little memory to measure" if is_measured else "not measured"
    yield f"{backend} {precision}, by the kind of processor; {reason}: `stillhouse accelerate` does"


def _describe(choice: BackendChoice) -> str:
    fastest, baseline = choice.fastest, choice.baseline
    if fastest.component == baseline.component:
        others = "the time ended before another was faster" if choice.is_cut else "no other was faster"
        return f"  {choice.role}: {describe_backend(baseline.component)}, {baseline.seconds:.3g} s; {others}"
    return (
        f"  {choice.role}: {describe_backend(fastest.component)}, {fastest.seconds:.3g} s "
        f"instead of {baseline.seconds:.3g} s of {describe_backend(baseline.component)}, SQNR {fastest.sqnr:.0f} dB"
    )
