"""`stillhouse accelerate SOURCE -o DIR`: every way to run a model here, measured, checked and chosen from."""

import re
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields, replace
from pathlib import Path

from stillhouse.accelerate.auto_acceleration.config import (
    DEVICES,
    ONES,
    AutoAccelerationConfig,
    check_config,
    find_layout,
    read_config,
)
from stillhouse.accelerate.calibration.inputs import infer_shapes, read_npz_inputs
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.report import GOALS, REPORT_FILE, Bounds
from stillhouse.accelerate.search.students import add_students
from stillhouse.accelerate.selection.apply import remove_leftovers
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.views.console import format_report
from stillhouse.accelerate.views.write_reports import write_reports
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.backends.input_checks import bind_axes
from stillhouse.backends.signature import read_signature
from stillhouse.backends.torch_device import CUDA
from stillhouse.cli.arguments import byte_size, duration, number, positive_integer
from stillhouse.cli.progress import show_progress
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.gpu import device_error, find_gpus, no_gpu_reason
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import read_manifest

NOTHING_CHOSEN, INTERRUPTED = 1, 130


def declare(parser: ArgumentParser) -> None:
    """The options of `accelerate`."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="model name, pipeline or diffusers dir, or .onnx")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where the faster pipeline goes")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.yml of Auto-Acceleration, read as it is")
    add_choice_options(parser)
    parser.add_argument("--budget", type=duration, metavar="TIME", help="best answer within 90s, 10m, 1h")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="at most so many; default: the engine decides"
    )
    parser.add_argument("--limit", type=duration, default=900.0, metavar="TIME", help="for one answer of a candidate")
    parser.add_argument("--memory", type=byte_size, metavar="SIZE", help="for a candidate and the baseline")
    parser.add_argument("--component", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--student", action="append", default=[], metavar="NAME", help="a candidate, too; repeatable")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="to compare by; repeatable")
    parser.add_argument("--inputs", type=Path, metavar="FILE.npz", help="real inputs of a bare .onnx file")
    parser.add_argument("--shape", action="append", default=[], type=parse_named_shape, metavar="NAME=1x3x224x224")
    parser.add_argument("--device", type=parse_device, metavar="NAME", help="auto, cpu, gpu, or the index of a GPU")
    parser.add_argument(
        "--rows", type=parse_batch_sizes, default=(), metavar="1,2,4", help="of batches that the U-Net is opened for"
    )
    parser.add_argument("--price", type=number, metavar="MONEY", help="of an hour of this machine, for --goal cost")


def add_choice_options(parser: ArgumentParser) -> None:
    """The options that say what is best: a goal, and bounds."""
    parser.add_argument("--goal", choices=GOALS, help="default: latency")
    parser.add_argument("--min-sqnr", type=number, metavar="DB", help="of every output of a network")
    parser.add_argument("--min-psnr", type=number, metavar="DB", help="of same-seed pictures")
    parser.add_argument("--min-ssim", type=number, metavar="X", help="of same-seed pictures, up to 1")
    parser.add_argument("--min-score", type=number, metavar="X", help="of the oracle, 0 to 1, where there is one")
    parser.add_argument("--max-score-drop", type=number, metavar="POINTS", help="of the oracle; default: 1")
    parser.add_argument("--max-mae", type=number, metavar="X", help="mean absolute error of every output")
    parser.add_argument("--max-memory", type=byte_size, metavar="SIZE", help="at its highest, for example 4GiB")


def read_bounds(arguments: Namespace) -> Bounds:
    """The bounds that were asked for."""
    return Bounds(**{field.name: getattr(arguments, field.name) for field in fields(Bounds)})


def run(arguments: Namespace) -> int:
    """Sweep, write every view, and print what was found. Exit code 1 where nothing was chosen; 130 after Ctrl-C, of
    which the directory is whole, too, and chosen from what was found until then."""
    source, out, config = _resolve_paths(arguments)
    asked = _make_options(arguments, config)
    students = [read_manifest(find_pipeline(name)) for name in arguments.student]  # refused before anything is written
    if Path(source).suffix == ".onnx":
        if students:
            raise InvalidRequest(f"{students[0].name} as a student of {source}", allowed="students of whole pipelines")
        _check_network(Path(source), asked, config)
    target = prepare_workspace(source, out)
    if arguments.student:
        asked = replace(asked, students=add_students(target, arguments.student))
    with show_progress() as tell:
        report = run_sweep(target, asked, tell)
    written = write_reports(out, report)
    remove_leftovers(out, report)
    print(format_report(report))
    print(f"{out}: {', '.join([*written, REPORT_FILE])}")
    if not report.finished:
        return INTERRUPTED
    return 0 if report.chosen else NOTHING_CHOSEN


def resolve_config_device(device: str | int) -> str:
    """What a config means by its device, as `Asked` takes it. Warns where there is no GPU, and the CPU is measured.

    Raises:
        InvalidRequest: there are GPUs, and none of that index.
    """
    if device not in ("auto", "cpu") and (missing := no_gpu_reason()):
        warnings.warn(f"the config asks for device {device}, and {missing}: the CPU is measured", stacklevel=2)
        return "auto"
    return _check_device(device)


def _check_device(told: str | int) -> str:
    """A device that was asked for, as `Asked` takes it. InvalidRequest where there is no such GPU."""
    if told in ("auto", "cpu"):
        return str(told)
    device = CUDA if told == "gpu" else f"{CUDA}:{told}"
    if missing := no_gpu_reason():
        raise InvalidRequest(f"device {told}, and {missing}", allowed="auto, cpu")
    if wrong := device_error(device, find_gpus()):
        raise InvalidRequest(wrong, allowed="auto, cpu, gpu, or the index of one")
    return device


def _make_options(arguments: Namespace, config: AutoAccelerationConfig | None) -> AccelerateOptions:
    """What the flags say; where they are silent, what the config says."""
    told = config or AutoAccelerationConfig()
    device = resolve_config_device(told.device) if arguments.device is None else _check_device(arguments.device)
    inputs = arguments.inputs or (told.probe if isinstance(told.probe, Path) else None)
    return AccelerateOptions(
        device=device,
        goal=arguments.goal or told.goal or "latency",
        bounds=merge_bounds(told.tolerance, read_bounds(arguments)),
        budget=arguments.budget,
        memory_limit=arguments.memory,
        timeout=arguments.limit,
        threads=arguments.threads,
        components=tuple(arguments.component),
        backends=tuple(arguments.engine),
        recipes=told.precision,
        timing_budget=None
        if told.iterations is None
        else TimingBudget(min_rounds=told.iterations, max_rounds=told.iterations),
        requests=tuple(ImageRequest(prompt, seed=seed) for seed, prompt in enumerate(arguments.prompt)),
        inputs=inputs,
        all_ones=told.probe == ONES and inputs is None,
        shapes={**told.shapes, **dict(arguments.shape)},
        shape_ranges={**told.shape_ranges, **{name: (shape, shape) for name, shape in arguments.shape}},
        rows=arguments.rows,
        price=arguments.price,
    )


def _check_network(graph: Path, options: AccelerateOptions, config: AutoAccelerationConfig | None) -> None:
    """Refuse what does not fit the graph before anything is written."""
    signature = read_signature(graph)
    if config is not None:
        check_config(config, signature)
    bind_axes(options.shapes, signature.inputs)
    if options.rows:
        raise InvalidRequest(f"--rows of {graph}", allowed="sizes of batches for the U-Net of a pipeline")
    if options.inputs:
        read_npz_inputs(options.inputs, graph)
    else:
        infer_shapes(graph, overrides=options.shapes)


def merge_bounds(before: Bounds, overrides: Bounds) -> Bounds:
    """Bounds with some of them asked for anew."""
    told = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
    return replace(before, **{name: value for name, value in told.items() if value is not None})


def parse_device(text: str) -> str | int:
    """As a config.yml names it.

    >>> device_named("gpu"), device_named("1"), device_named("cuda:1")
    ('gpu', 1, 1)
    """
    index = re.fullmatch(r"(?:cuda:)?(\d{1,3})", text)
    if index:
        return int(index[1])
    if text not in (*DEVICES, CUDA):
        raise ArgumentTypeError(f"{text!r}; allowed: auto, cpu, gpu, or the index of a GPU, such as 0 or cuda:0")
    return "gpu" if text == CUDA else text


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Sizes of batches, rising; 1 and 2, which one picture takes, are always among them.

    >>> sizes("8,4")
    (1, 2, 4, 8)
    """
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise ArgumentTypeError(f"{text!r}; allowed: rows of a batch from 1 to 9999, such as 1,2,4,8")
    return tuple(sorted({1, 2, *map(int, text.split(","))}))


def parse_named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and shape out of NAME=1x3x224x224.

    >>> named_shape("image=1x3x64x64")
    ('image', (1, 3, 64, 64))
    """
    name, _, axes = text.rpartition("=")
    if not name or not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", axes):
        raise ArgumentTypeError(f"{text!r}; allowed: NAME=1x3x224x224")
    return name, tuple(int(axis) for axis in re.split("[x,]", axes))


def _resolve_paths(arguments: Namespace) -> tuple[str, Path, AutoAccelerationConfig | None]:
    if arguments.config is None:
        if arguments.source is None or arguments.out is None:
            raise InvalidRequest(
                "no source or no directory for the result",
                allowed="SOURCE -o DIR, or --config FILE",
                fix="try stillhouse accelerate shapes -o faster",
            )
        return arguments.source, arguments.out, None
    config = read_config(arguments.config)
    if arguments.source is not None and arguments.out is not None:
        return arguments.source, arguments.out, config
    layout = find_layout(arguments.config)
    return arguments.source or str(layout.model), arguments.out or layout.output, config
