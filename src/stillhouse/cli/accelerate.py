"""`stillhouse accelerate SOURCE -o DIR`: find the fastest accurate configuration of a model on this machine."""

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
from stillhouse.accelerate.calibration.inputs import infer_shapes, read_user_inputs
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.report import GOALS, REPORT_FILE, Bounds
from stillhouse.accelerate.search.students import add_students
from stillhouse.accelerate.selection.apply import remove_leftovers
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.views.console import format_report
from stillhouse.accelerate.views.write_reports import write_reports
from stillhouse.accelerate.workspace import lock_directory, prepare_workspace
from stillhouse.backends.runner import bind_axes
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
    """Add the options of `stillhouse accelerate` to its argument parser."""
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="model name, pipeline or diffusers directory, or .onnx file"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="directory of the accelerated pipeline")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.yml of Auto-Acceleration")
    add_choice_options(parser)
    parser.add_argument("--budget", type=duration, metavar="TIME", help="time limit of the sweep: 90s, 10m, 1h")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="maximum number; default: the backend decides"
    )
    parser.add_argument(
        "--limit", type=duration, default=900.0, metavar="TIME", help="time limit of one call of a candidate"
    )
    parser.add_argument("--memory", type=byte_size, metavar="SIZE", help="memory limit of a candidate and the baseline")
    parser.add_argument(
        "--component", action="append", default=[], metavar="NAME", help="sweep only this component; repeatable"
    )
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="try only this backend; repeatable"
    )
    parser.add_argument(
        "--student", action="append", default=[], metavar="NAME", help="distilled student to try; repeatable"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="prompt of the compared pictures; repeatable"
    )
    parser.add_argument(
        "--inputs", type=Path, metavar="PATH", help="inputs of a bare .onnx file: an .npz file, or a folder of pictures"
    )
    parser.add_argument(
        "--pixels",
        default="",
        metavar="RANGE",
        help="range of pixels for a folder of pictures: 0..1, 0..255, -1..1 or imagenet; 0..1:bgr for BGR",
    )
    parser.add_argument("--shape", action="append", default=[], type=parse_named_shape, metavar="NAME=1x3x224x224")
    parser.add_argument("--device", type=parse_device, metavar="NAME", help="auto, cpu, gpu, or the index of a GPU")
    parser.add_argument(
        "--rows",
        type=parse_batch_sizes,
        default=(),
        metavar="1,2,4",
        help="batch sizes that a static denoiser is opened for",
    )
    parser.add_argument(
        "--price", type=number, metavar="MONEY", help="price of an hour of this machine, for --goal cost"
    )


def add_choice_options(parser: ArgumentParser) -> None:
    """Add to a parser the options that decide which measured configuration is chosen: goal and bounds."""
    parser.add_argument("--goal", choices=GOALS, help="default: latency")
    parser.add_argument("--min-sqnr", type=number, metavar="DB", help="SQNR of every output of a component")
    parser.add_argument("--min-psnr", type=number, metavar="DB", help="PSNR of same-seed pictures")
    parser.add_argument("--min-ssim", type=number, metavar="X", help="SSIM of same-seed pictures, up to 1")
    parser.add_argument("--min-score", type=number, metavar="X", help="score of the oracle, 0 to 1, if there is one")
    parser.add_argument(
        "--max-score-drop", type=number, metavar="POINTS", help="drop of the oracle's score; default: 1"
    )
    parser.add_argument("--max-mae", type=number, metavar="X", help="mean absolute error of every output")
    parser.add_argument("--max-memory", type=byte_size, metavar="SIZE", help="peak memory, for example 4GiB")


def read_bounds(arguments: Namespace) -> Bounds:
    """Return the bounds on accuracy and memory that the user gave as options; None for a bound not given."""
    return Bounds(**{field.name: getattr(arguments, field.name) for field in fields(Bounds)})


def run(arguments: Namespace) -> int:
    """Measure configurations of a model, write the fastest accurate one and the reports, and print the report.

    Returns:
        the exit code. 0: success. 1: no configuration was chosen. 130: Ctrl-C was pressed; the output directory is
        still complete, with the best of the configurations measured before.
    """
    source, out, config = _resolve_paths(arguments)
    options = _make_options(arguments, config)
    # The students' manifests are read now, so that a wrong name is reported before files are written.
    students = [read_manifest(find_pipeline(name)) for name in arguments.student]
    if Path(source).suffix == ".onnx":
        if students:
            problem = f"--student {students[0].name} was given, but the source {source} is a single ONNX file"
            raise InvalidRequest(problem, allowed="students of whole pipelines")
        _check_network(Path(source), options, config)
    with lock_directory(out), show_progress() as on_progress:
        workspace = prepare_workspace(source, out)
        if arguments.student:
            options = replace(options, students=add_students(workspace, arguments.student))
        report = run_sweep(workspace, options, on_progress)
        files = write_reports(out, report)
        remove_leftovers(out, report)
    print(format_report(report, directory=out))
    print(f"{out}: {', '.join([*files, REPORT_FILE])}")
    if not report.finished:
        return INTERRUPTED
    return 0 if report.chosen else NOTHING_CHOSEN


def resolve_config_device(device: str | int) -> str:
    """Convert the device of a config.yml to a value for `AccelerateOptions`: "auto", "cpu", "cuda" or "cuda:1".

    If a GPU is requested and the machine has none, warn and return "auto", which means the CPU then.

    Args:
        device: auto, cpu, gpu, or the index of a GPU.

    Raises:
        InvalidRequest: the machine has GPUs, but none with the requested index.
    """
    if device not in ("auto", "cpu") and (reason := no_gpu_reason()):
        warnings.warn(f"the config requests device {device}, but {reason}: measuring on the CPU", stacklevel=2)
        return "auto"
    return _check_device(device)


def _check_device(requested: str | int) -> str:
    """Convert a requested device to a value for `AccelerateOptions`: "auto", "cpu", "cuda" or "cuda:1".

    Args:
        requested: auto, cpu, gpu, or the index of a GPU.

    Raises:
        InvalidRequest: the machine does not have the requested GPU.
    """
    if requested in ("auto", "cpu"):
        return str(requested)
    device = CUDA if requested == "gpu" else f"{CUDA}:{requested}"
    if reason := no_gpu_reason():
        raise InvalidRequest(f"device {requested} was requested, but {reason}", allowed="auto, cpu")
    if problem := device_error(device, find_gpus()):
        raise InvalidRequest(
            f"device {requested} was requested, but {problem}", allowed="auto, cpu, gpu, or the index of a GPU"
        )
    return device


def _make_options(arguments: Namespace, config: AutoAccelerationConfig | None) -> AccelerateOptions:
    """Return the options of `run_sweep`, the measurement of all candidates.

    Args:
        arguments: options of the command line.
        config: content of a config.yml, whose values replace options that the command line does not give; None: no
            config, so that these options have their defaults.
    """
    defaults = config or AutoAccelerationConfig()
    device = resolve_config_device(defaults.device) if arguments.device is None else _check_device(arguments.device)
    inputs = arguments.inputs or (defaults.probe if isinstance(defaults.probe, Path) else None)
    return AccelerateOptions(
        device=device,
        goal=arguments.goal or defaults.goal or "latency",
        bounds=merge_bounds(defaults.tolerance, read_bounds(arguments)),
        budget=arguments.budget,
        memory_limit=arguments.memory,
        timeout=arguments.limit,
        threads=arguments.threads,
        components=tuple(arguments.component),
        backends=tuple(arguments.engine),
        recipes=defaults.precision,
        timing_budget=None
        if defaults.iterations is None
        else TimingBudget(min_rounds=defaults.iterations, max_rounds=defaults.iterations),
        requests=tuple(ImageRequest(prompt, seed=seed) for seed, prompt in enumerate(arguments.prompt)),
        inputs=inputs,
        pixels=arguments.pixels,
        all_ones=defaults.probe == ONES and inputs is None,
        shapes={**defaults.shapes, **dict(arguments.shape)},
        shape_ranges={**defaults.shape_ranges, **{name: (shape, shape) for name, shape in arguments.shape}},
        rows=arguments.rows,
        price=arguments.price,
    )


def _check_network(graph: Path, options: AccelerateOptions, config: AutoAccelerationConfig | None) -> None:
    """Check that the options and the config match the inputs of a single ONNX file, before files are written.

    The options come from the command line and from `config`, the content of a config.yml; None: no config.

    Raises:
        InvalidRequest: a shape, a file of inputs or an option does not match.
        PipelineError: the file is missing or not an ONNX graph.
    """
    signature = read_signature(graph)
    if config is not None:
        check_config(config, signature)
    bind_axes(options.shapes, signature.inputs)
    if options.rows:
        problem = f"--rows was given, but the source {graph} is a single ONNX file"
        raise InvalidRequest(problem, allowed="batch sizes for the denoiser of a pipeline")
    if options.inputs:
        read_user_inputs(options.inputs, graph, options.shapes, options.pixels)
    elif options.pixels:
        problem = f"--pixels {options.pixels} was given without --inputs"
        raise InvalidRequest(problem, allowed="--pixels together with --inputs FOLDER")
    else:
        infer_shapes(graph, overrides=options.shapes)


def merge_bounds(before: Bounds, overrides: Bounds) -> Bounds:
    """Return a copy of the bounds `before`, in which values of `overrides` that are not None replace earlier values."""
    values = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
    return replace(before, **{name: value for name, value in values.items() if value is not None})


def parse_device(text: str) -> str | int:
    """Parse the option --device: return "auto", "cpu" or "gpu", or the index of a GPU.

    >>> parse_device("gpu"), parse_device("1"), parse_device("cuda:1")
    ('gpu', 1, 1)
    """
    index = re.fullmatch(r"(?:cuda:)?(\d{1,3})", text)
    if index:
        return int(index[1])
    if text not in (*DEVICES, CUDA):
        raise ArgumentTypeError(
            f"{text!r} is not a device; allowed: auto, cpu, gpu, or the index of a GPU, such as 0 or cuda:0"
        )
    return "gpu" if text == CUDA else text


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Parse batch sizes, separated by commas, and return them in ascending order.

    1 and 2 are always included, because one picture takes one row of a batch, or two with classifier-free guidance.

    >>> parse_batch_sizes("8,4")
    (1, 2, 4, 8)
    """
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise ArgumentTypeError(
            f"{text!r} is not a list of batch sizes; allowed: batch sizes from 1 to 9999, such as 1,2,4,8"
        )
    return tuple(sorted({1, 2, *map(int, text.split(","))}))


def parse_named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse the option --shape, NAME=1x3x224x224, and return the input's name and shape.

    >>> parse_named_shape("image=1x3x64x64")
    ('image', (1, 3, 64, 64))
    """
    name, _, axes = text.rpartition("=")
    if not name or not re.fullmatch(r"(0|[1-9]\d*)([x,](0|[1-9]\d*))*", axes):
        raise ArgumentTypeError(f"{text!r} is not a name with a shape; allowed: NAME=1x3x224x224")
    return name, tuple(int(axis) for axis in re.split("[x,]", axes))


def _resolve_paths(arguments: Namespace) -> tuple[str, Path, AutoAccelerationConfig | None]:
    if arguments.config is None:
        if arguments.source is None or arguments.out is None:
            raise InvalidRequest(
                "no source or no output directory was given",
                allowed="SOURCE -o DIR, or --config FILE",
                fix="try stillhouse accelerate shapes -o faster",
            )
        return arguments.source, arguments.out, None
    config = read_config(arguments.config)
    if arguments.source is not None and arguments.out is not None:
        return arguments.source, arguments.out, config
    layout = find_layout(arguments.config)
    return arguments.source or str(layout.model), arguments.out or layout.output, config
