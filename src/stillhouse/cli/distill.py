"""`stillhouse distill TEACHER -o STUDENT`: a pipeline that takes fewer steps, learnt from one that takes more."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.cli.arguments import integer, number, positive_integer
from stillhouse.cli.progress import ProgressCallback, show_progress
from stillhouse.errors import InvalidRequest, RuntimeMissing
from stillhouse.pipelines.manifest import read_manifest

if TYPE_CHECKING:
    from stillhouse.distill.data.image_folder import SkippedImage
    from stillhouse.distill.settings import DistillSettings
    from stillhouse.fit.stage import UpdateLog

UNFINISHED = 1
REQUIRED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "onnx")
_MAX_SKIPPED_LINES = 5


def declare(parser: ArgumentParser) -> None:
    """The options of `distill`."""
    parser.add_argument("teacher", metavar="TEACHER", help="model name or pipeline directory")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where the student goes")
    parser.add_argument("--config", type=Path, metavar="FILE", help="distill.toml; options win over it")
    parser.add_argument(
        "--rounds", type=parse_step_counts, metavar="36,18,9,3", help="steps of the teacher, then of each student"
    )
    parser.add_argument("--method", metavar="NAME", help="progressive, consistency or walks; default: progressive")
    parser.add_argument(
        "--begin", metavar="STUDENT", help="of walks: a student of this teacher, which goes on learning"
    )
    parser.add_argument("--task", metavar="NAME", help="text2img, or img2img for edits, too; default: text2img")
    parser.add_argument(
        "--guidance", type=parse_guidance_range, metavar="1..8", help="scales that the student is asked for"
    )
    parser.add_argument(
        "--data", metavar="DATA", help="folder of pictures with captions, or shapes; default: teacher's"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line, where the teacher draws what is learnt from"
    )
    parser.add_argument("--items", type=positive_integer, metavar="N", help="pictures to learn from; default: 20000")
    parser.add_argument(
        "--lora", dest="rank", type=positive_integer, metavar="RANK", help="learn low-rank factors only"
    )
    parser.add_argument(
        "--factors", type=Path, metavar="FILE", help="student_lora.safetensors, learnt before: put on this teacher"
    )
    parser.add_argument("--decoder", type=positive_integer, metavar="WIDTH", help="learn a tiny decoder, too: 32, 64")
    parser.add_argument("--seed", type=integer, metavar="N", help="default: 0")
    parser.add_argument("--max-hours", type=number, metavar="H", help="stop after so long; the next run goes on")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoints, logs, strips; default: OUT.work")
    parser.add_argument("--all", action="store_true", help="keep the students between, too: OUT-guidance, OUT-18")
    parser.add_argument("--force", action="store_true", help="replace a pipeline that is there")
    learning = parser.add_argument_group("of every student")
    learning.add_argument("--updates", type=positive_integer, metavar="N", help="of the weights")
    learning.add_argument("--batch", type=positive_integer, metavar="N", help="examples at once, in each process")
    learning.add_argument("--accumulate", type=positive_integer, metavar="N", help="batches for each update")
    learning.add_argument("--rate", type=number, metavar="X", help="the highest learning rate")
    learning.add_argument("--precision", choices=("f32", "bf16"), help="bf16: mixed precision; default: f32")
    learning.add_argument(
        "--patience", type=positive_integer, metavar="N", help="end after so many judgements without gain"
    )
    learning.add_argument("--checkpointing", action="store_true", default=None, help="less memory, a third more time")


def run(arguments: Namespace) -> int:
    """Teach, write, say what was made. Exit code 1 where time was up before the student had learnt."""
    for package in REQUIRED_PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            fix = "pip install 'stillhouse[train]'"
            raise RuntimeMissing(f"distilling needs {package}: {error}", fix=fix) from error
    from stillhouse.distill.run import distill

    if arguments.factors:
        return _apply_lora(arguments)
    settings = make_distill_settings(arguments)
    work = arguments.work or arguments.out.with_name(f"{arguments.out.name}.work")
    with show_progress() as report:
        told = _ProgressPrinter(report)
        try:
            made = distill(
                arguments.teacher,
                arguments.out,
                settings,
                work,
                told,
                all_students=arguments.all,
                force=arguments.force,
            )
        finally:
            told.end(work)
    if not made.is_main_process:
        return 0
    if not made.is_done:
        print(f"time was up; what was learnt is in {work}: the same command goes on")
        return UNFINISHED
    for directory in made.directories:
        steps = read_manifest(directory).defaults.steps
        print(f"{directory}  {steps} steps; logs and strips in {work}")
    print(f'  stillhouse generate "your prompt" --model {arguments.out}')
    return 0


def _apply_lora(arguments: Namespace) -> int:
    from stillhouse.distill.apply_lora import apply_lora
    from stillhouse.distill.settings import DistillSettings, LearningOverrides

    learning = {**_set_options(arguments, DistillSettings), **_set_options(arguments, LearningOverrides)}
    if learning or arguments.config or arguments.all or arguments.work:
        raise InvalidRequest("options of learning beside --factors", allowed="-o and --force: nothing is learnt then")
    apply_lora(arguments.teacher, arguments.factors, arguments.out, force=arguments.force)
    print(f"{arguments.out}  {read_manifest(arguments.out).defaults.steps} steps")
    print(f"  stillhouse judge {arguments.out} --against {arguments.teacher}")
    return 0


def parse_step_counts(text: str) -> tuple[int, ...]:
    """Steps out of 36,18,9,3.

    >>> counts("36,18,9,3")
    (36, 18, 9, 3)
    """
    if not re.fullmatch(r"\d+(,\d+)+", text):
        raise ArgumentTypeError(f"{text!r}; allowed: two counts of steps or more: 36,18,9,3")
    return tuple(map(int, text.split(",")))


def parse_guidance_range(text: str) -> tuple[float, float]:
    """The least and the most guidance out of 1..8.

    >>> scales("1..8")
    (1.0, 8.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)", text)
    if not found:
        raise ArgumentTypeError(f"{text!r}; allowed: the least and the most scale: 1..8")
    return float(found[1]), float(found[2])


def make_distill_settings(arguments: Namespace) -> "DistillSettings":
    """What the file says, and what the options say instead."""
    from stillhouse.distill.settings import TEACHER, DistillSettings, LearningOverrides, read_distill_settings

    settings = read_distill_settings(arguments.config) if arguments.config else DistillSettings()
    said = _set_options(arguments, LearningOverrides)
    students = {name: replace(one, **said) for name, one in settings.students.items()}
    if arguments.prompts:
        data = {"data": TEACHER}
    else:
        data = {} if arguments.data or arguments.config else _default_data(arguments.teacher)
    given = {**data, **_set_options(arguments, DistillSettings)}
    return replace(settings, **given, learning=replace(settings.learning, **said), students=students)


def _set_options(arguments: Namespace, settings_class: Any) -> dict[str, Any]:
    said = {one.name: getattr(arguments, one.name, None) for one in fields(settings_class)}
    return {name: value for name, value in said.items() if value is not None}


def _default_data(teacher: str) -> dict[str, str]:
    """An embedded model learns from its own world where nothing else is said."""
    from stillhouse.pipelines.load import EMBEDDED

    return {"data": teacher} if teacher in EMBEDDED else {}


class _ProgressPrinter:
    """Moves the bar; skipped pictures are counted, and the first of them named."""

    def __init__(self, report: ProgressCallback) -> None:
        self._report = report
        self._skipped: list[str] = []

    def on_samples(self, done: int, total: int) -> None:
        self._report("encoding", done, total)

    def on_skipped(self, image: "SkippedImage") -> None:
        self._skipped.append(f"{image.name}: {image.reason}")

    def on_update(self, update_log: "UpdateLog") -> None:
        self._report(f"{update_log.stage}  loss {update_log.loss:.4f}", update_log.update, update_log.updates)
        if update_log.scores:
            scores = "  ".join(f"{name} {value:.2f}" for name, value in update_log.scores.items())
            print(f"{update_log.stage} {update_log.update}: {scores}", flush=True)

    def end(self, work: Path) -> None:
        """Say what was skipped."""
        for line in self._skipped[:_MAX_SKIPPED_LINES]:
            print(f"skipped {line}")
        if count := len(self._skipped):
            print(f"{count} picture{'s were' if count > 1 else ' was'} skipped; all are named in {work}/*/skipped.csv")
