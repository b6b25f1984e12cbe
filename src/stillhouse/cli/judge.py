"""`stillhouse judge NAME...`: how well pipelines draw, alone by the oracle of Shapes, or beside their teacher."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stillhouse.cli.arguments import add_engine_options, integer, number, positive_integer
from stillhouse.cli.opening import open_pipeline
from stillhouse.cli.progress import show_progress
from stillhouse.cli.table import format_table
from stillhouse.core import ImageRequest
from stillhouse.distill.data.prompt_file import read_prompts
from stillhouse.distill.evaluation.comparison import CaptionSet, GenerationSetup, shapes_caption_set, student_setup
from stillhouse.distill.evaluation.evaluation_report import (
    evaluate_students,
    evaluation_columns,
    evaluation_rows,
    evaluation_to_json,
    summarize_evaluation,
)
from stillhouse.distill.evaluation.metric_encoders import MetricEncoders, open_clip, open_inception
from stillhouse.distill.views.evaluation_page import render_evaluation_page
from stillhouse.errors import InvalidRequest
from stillhouse.images.png import write_file
from stillhouse.measure.set_metrics import NEIGHBOURS
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.scene import CANVAS
from stillhouse.shapes.score import CaptionEvaluation, Share, evaluate_captions

TEACHER_STEPS = 35


def declare(parser: ArgumentParser) -> None:
    """The options of `judge`."""
    parser.add_argument("names", nargs="+", metavar="NAME_OR_DIR", help="shapes, or a pipeline that was made from it")
    parser.add_argument(
        "--against", metavar="TEACHER", help="compare with this pipeline, which they were distilled from"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="the comparison as a page; with --against")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, for models of other things")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="a CLIP model of yours: adds the CLIP score")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="Inception in TorchScript, of yours: adds FID")
    add_engine_options(parser)
    parser.add_argument(
        "--captions", type=positive_integer, default=1000, metavar="N", help="held-out captions; default: 1000"
    )
    parser.add_argument("--steps", type=integer, metavar="N", help="of the teacher, or of the only one; default: 35")
    parser.add_argument("--guidance", type=number, metavar="W", help="default: the model's own")
    parser.add_argument("--sampler", metavar="NAME", help="default: the model's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")


def run(arguments: Namespace) -> int:
    """Judge, print the table, and keep the figures where that was asked for."""
    return _compare_with_teacher(arguments) if arguments.against else _score_alone(arguments)


def _score_alone(arguments: Namespace) -> int:
    if len(arguments.names) > 1 or any((arguments.out, arguments.prompts, arguments.clip, arguments.inception)):
        given = "several pipelines, a page, prompts, CLIP or Inception without --against"
        raise InvalidRequest(given, fix="say which one is the teacher")
    pipeline = open_pipeline(arguments.names[0], arguments)
    distilled = pipeline.manifest.distilled
    own = None if distilled and distilled.timesteps else TEACHER_STEPS
    asked = ImageRequest(
        "",
        steps=own if arguments.steps is None else arguments.steps,
        guidance=arguments.guidance,
        sampler=arguments.sampler,
    )
    with show_progress() as report:
        judgement = evaluate_captions(
            pipeline, asked, arguments.captions, lambda done: report("judging", done, arguments.captions)
        )
    print(_format_judgement(judgement))
    if arguments.json:
        write_file(arguments.json, (json.dumps(asdict(judgement), indent=2) + "\n").encode())
    return 0


def _compare_with_teacher(arguments: Namespace) -> int:
    if arguments.captions <= NEIGHBOURS:
        raise InvalidRequest(f"{arguments.captions} captions", allowed=f"{NEIGHBOURS + 1} and more, to compare sets")
    teacher = _teacher_variant(arguments)
    own = teacher.pipeline.manifest.defaults.guidance
    guidance = own if arguments.guidance is None else arguments.guidance
    students = [student_setup(open_pipeline(name, arguments), guidance) for name in arguments.names]
    subject = _evaluation_prompts(arguments, teacher.pipeline)
    brought = MetricEncoders(
        arguments.clip and open_clip(arguments.clip), arguments.inception and open_inception(arguments.inception)
    )
    with show_progress() as report:
        verdict, found = evaluate_students(teacher, students, subject, report, brought)
    print(f"{format_table(evaluation_columns(verdict), evaluation_rows(verdict))}\n\n{summarize_evaluation(verdict)}")
    if arguments.json:
        write_file(arguments.json, evaluation_to_json(verdict).encode())
    if arguments.out:
        write_file(arguments.out, render_evaluation_page(verdict, found.prompts, found.pictures).encode())
        print(f"{arguments.out}: the same with plots and pictures")
    return 0


def _teacher_variant(arguments: Namespace) -> GenerationSetup:
    pipeline = open_pipeline(arguments.against, arguments)
    steps = TEACHER_STEPS if arguments.steps is None else arguments.steps
    asked = ImageRequest("", steps=steps, guidance=arguments.guidance, sampler=arguments.sampler)
    return GenerationSetup(f"teacher, {steps} steps", pipeline, asked)


def _evaluation_prompts(arguments: Namespace, teacher: Pipeline) -> CaptionSet:
    if arguments.prompts is None:
        size = teacher.manifest.defaults.width, teacher.manifest.defaults.height
        if size != (CANVAS, CANVAS):
            given = f"{teacher.manifest.name} draws {size[0]}x{size[1]}, which the oracle of Shapes cannot read"
            raise InvalidRequest(given, fix="give it prompts of its own world: --prompts FILE")
        return shapes_caption_set(arguments.captions)
    prompts = read_prompts(arguments.prompts)
    # Each prompt again from other seeds, until there are as many pictures as were asked for.
    return CaptionSet(tuple(prompts[number % len(prompts)] for number in range(arguments.captions)))


def _format_judgement(judgement: CaptionEvaluation) -> str:
    found = [
        [name.replace("_", " "), *_format_share(share), _format_share(judgement.ceiling[name])[0]]
        for name, share in judgement.scores.items()
    ]
    course = f"{judgement.captions} captions, {judgement.steps} {judgement.sampler} steps"
    return (
        f"{course}, guidance {judgement.guidance:g}, {judgement.seconds:.3f} s per picture\n\n"
        f"{format_table(['', 'share', '95 % interval', 'autoencoder alone'], found)}\n\n"
        f"picture against its clean redrawing: {judgement.rerender:.1f} dB"
    )


def _format_share(share: Share) -> tuple[str, str]:
    return f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"
