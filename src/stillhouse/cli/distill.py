"""`stillhouse distill TEACHER -o STUDENT`: a pipeline that takes fewer steps, learnt from one that takes more."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.cli.arguments import number, positive, whole
from stillhouse.cli.progress import Report, progress
from stillhouse.errors import InvalidRequest, RuntimeMissing
from stillhouse.pipelines.manifest import read_manifest

if TYPE_CHECKING:
    from stillhouse.distill.data.image_folder import Skipped
    from stillhouse.distill.settings import Settings
    from stillhouse.fit.stage import Tick

NOT_YET = 1
NEEDED = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "onnx")
_SHOWN = 5


def declare(parser: ArgumentParser) -> None:
    """The options of `distill`."""
    parser.add_argument("teacher", metavar="TEACHER", help="model name or pipeline directory")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where the student goes")
    parser.add_argument("--config", type=Path, metavar="FILE", help="distill.toml; options win over it")
    parser.add_argument("--rounds", type=counts, metavar="36,18,9,3", help="steps of the teacher, then of each student")
    parser.add_argument("--method", metavar="NAME", help="progressive, consistency or walks; default: progressive")
    parser.add_argument(
        "--begin", metavar="STUDENT", help="of walks: a student of this teacher, which goes on learning"
    )
    parser.add_argument("--task", metavar="NAME", help="text2img, or img2img for edits, too; default: text2img")
    parser.add_argument("--guidance", type=scales, metavar="1..8", help="scales that the student is asked for")
    parser.add_argument(
        "--data", metavar="DATA", help="folder of pictures with captions, or shapes; default: teacher's"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line, where the teacher draws what is learnt from"
    )
    parser.add_argument("--items", type=positive, metavar="N", help="pictures to learn from; default: 20000")
    parser.add_argument("--lora", dest="rank", type=positive, metavar="RANK", help="learn low-rank factors only")
    parser.add_argument(
        "--factors", type=Path, metavar="FILE", help="student_lora.safetensors, learnt before: put on this teacher"
    )
    parser.add_argument("--decoder", type=positive, metavar="WIDTH", help="learn a tiny decoder, too: 32, 64")
    parser.add_argument("--seed", type=whole, metavar="N", help="default: 0")
    parser.add_argument("--max-hours", type=number, metavar="H", help="stop after so long; the next run goes on")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoints, logs, strips; default: OUT.work")
    parser.add_argument("--all", action="store_true", help="keep the students between, too: OUT-guidance, OUT-18")
    parser.add_argument("--force", action="store_true", help="replace a pipeline that is there")
    learning = parser.add_argument_group("of every student")
    learning.add_argument("--updates", type=positive, metavar="N", help="of the weights")
    learning.add_argument("--batch", type=positive, metavar="N", help="examples at once, in each process")
    learning.add_argument("--accumulate", type=positive, metavar="N", help="batches for each update")
    learning.add_argument("--rate", type=number, metavar="X", help="the highest learning rate")
    learning.add_argument("--precision", choices=("f32", "bf16"), help="bf16: mixed precision; default: f32")
    learning.add_argument("--patience", type=positive, metavar="N", help="end after so many judgements without gain")
    learning.add_argument("--checkpointing", action="store_true", default=None, help="less memory, a third more time")


def run(arguments: Namespace) -> int:
    """Teach, write, say what was made. Exit code 1 where time was up before the student had learnt."""
    for package in NEEDED:
        try:
            import_module(package)
        except ImportError as error:
            fix = "pip install 'stillhouse[train]'"
            raise RuntimeMissing(f"distilling needs {package}: {error}", fix=fix) from error
    from stillhouse.distill.run import distil

    if arguments.factors:
        return _put_on(arguments)
    settings = settings_of(arguments)
    work = arguments.work or arguments.out.with_name(f"{arguments.out.name}.work")
    with progress() as report:
        told = _Told(report)
        try:
            made = distil(
                arguments.teacher, arguments.out, settings, work, told, every=arguments.all, force=arguments.force
            )
        finally:
            told.end(work)
    if not made.is_first:
        return 0
    if not made.is_done:
        print(f"time was up; what was learnt is in {work}: the same command goes on")
        return NOT_YET
    for directory in made.written:
        steps = read_manifest(directory).defaults.steps
        print(f"{directory}  {steps} steps; logs and strips in {work}")
    print(f'  stillhouse generate "your prompt" --model {arguments.out}')
    return 0


def _put_on(arguments: Namespace) -> int:
    from stillhouse.distill.apply_lora import put_on
    from stillhouse.distill.settings import Learning, Settings

    learning = {**_given(arguments, Settings), **_given(arguments, Learning)}
    if learning or arguments.config or arguments.all or arguments.work:
        raise InvalidRequest("options of learning beside --factors", allowed="-o and --force: nothing is learnt then")
    put_on(arguments.teacher, arguments.factors, arguments.out, force=arguments.force)
    print(f"{arguments.out}  {read_manifest(arguments.out).defaults.steps} steps")
    print(f"  stillhouse judge {arguments.out} --against {arguments.teacher}")
    return 0


def counts(text: str) -> tuple[int, ...]:
    """Steps out of 36,18,9,3.

    >>> counts("36,18,9,3")
    (36, 18, 9, 3)
    """
    if not re.fullmatch(r"\d+(,\d+)+", text):
        raise ArgumentTypeError(f"{text!r}; allowed: two counts of steps or more: 36,18,9,3")
    return tuple(map(int, text.split(",")))


def scales(text: str) -> tuple[float, float]:
    """The least and the most guidance out of 1..8.

    >>> scales("1..8")
    (1.0, 8.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)", text)
    if not found:
        raise ArgumentTypeError(f"{text!r}; allowed: the least and the most scale: 1..8")
    return float(found[1]), float(found[2])


def settings_of(arguments: Namespace) -> "Settings":
    """What the file says, and what the options say instead."""
    from stillhouse.distill.settings import TEACHER, Learning, Settings, read_settings

    settings = read_settings(arguments.config) if arguments.config else Settings()
    said = _given(arguments, Learning)
    students = {name: replace(one, **said) for name, one in settings.students.items()}
    if arguments.prompts:
        data = {"data": TEACHER}
    else:
        data = {} if arguments.data or arguments.config else _own_world(arguments.teacher)
    given = {**data, **_given(arguments, Settings)}
    return replace(settings, **given, learning=replace(settings.learning, **said), students=students)


def _given(arguments: Namespace, kind: Any) -> dict[str, Any]:
    said = {one.name: getattr(arguments, one.name, None) for one in fields(kind)}
    return {name: value for name, value in said.items() if value is not None}


def _own_world(teacher: str) -> dict[str, str]:
    """An embedded model learns from its own world where nothing else is said."""
    from stillhouse.pipelines.load import EMBEDDED

    return {"data": teacher} if teacher in EMBEDDED else {}


class _Told:
    """Moves the bar; skipped pictures are counted, and the first of them named."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._skipped: list[str] = []

    def items(self, done: int, total: int) -> None:
        self._report("encoding", done, total)

    def skipped(self, one: "Skipped") -> None:
        self._skipped.append(f"{one.name}: {one.reason}")

    def tick(self, tick: "Tick") -> None:
        self._report(f"{tick.stage}  loss {tick.loss:.4f}", tick.update, tick.updates)
        if tick.scores:
            scores = "  ".join(f"{name} {value:.2f}" for name, value in tick.scores.items())
            print(f"{tick.stage} {tick.update}: {scores}", flush=True)

    def end(self, work: Path) -> None:
        """Say what was skipped."""
        for line in self._skipped[:_SHOWN]:
            print(f"skipped {line}")
        if count := len(self._skipped):
            print(f"{count} picture{'s were' if count > 1 else ' was'} skipped; all are named in {work}/*/skipped.csv")
