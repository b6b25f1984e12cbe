"""`stillhouse judge NAME...`: measure how well pictures show what their prompts ask for.

A model that this package contains is scored by a program (oracle) that finds the shapes in a picture. With --against,
distilled students are compared with their teacher.
"""

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
from stillhouse.images.files import write_file
from stillhouse.measure.set_metrics import NEIGHBOURS
from stillhouse.pipelines.manifest import Distilled
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.scene import CANVAS
from stillhouse.shapes.score import CaptionEvaluation, Share, evaluate_captions

TEACHER_STEPS = 35


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse judge` to its argument parser."""
    parser.add_argument("names", nargs="+", metavar="NAME_OR_DIR", help="model name or pipeline directory")
    parser.add_argument(
        "--against", metavar="TEACHER", help="compare students with the pipeline that they were distilled from"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="HTML report; with --against")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one prompt on each line, for models other than Shapes"
    )
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model of transformers: adds the CLIP score")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="Inception network in TorchScript: adds FID")
    add_engine_options(parser)
    parser.add_argument(
        "--captions", type=positive_integer, default=1000, metavar="N", help="number of captions; default: 1000"
    )
    parser.add_argument(
        "--steps", type=integer, metavar="N", help="steps of the teacher, or of the only pipeline; default: 35"
    )
    parser.add_argument("--guidance", type=number, metavar="W", help="default: the model's own")
    parser.add_argument("--sampler", metavar="NAME", help="default: the model's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements as JSON")


def run(arguments: Namespace) -> int:
    """Evaluate a pipeline, or students against their teacher, print the results and write requested files.

    The returned exit code is 0.
    """
    return _compare_with_teacher(arguments) if arguments.against else _score_alone(arguments)


def _score_alone(arguments: Namespace) -> int:
    if len(arguments.names) > 1 or any((arguments.out, arguments.prompts, arguments.clip, arguments.inception)):
        problem = "several pipelines, --out, --prompts, --clip or --inception were given without --against"
        raise InvalidRequest(problem, fix="name the teacher with --against TEACHER")
    pipeline = open_pipeline(arguments.names[0], arguments)
    request = _make_request(pipeline.manifest.distilled, arguments)
    with show_progress() as report:
        evaluation = evaluate_captions(
            pipeline, request, arguments.captions, lambda done: report("evaluating", done, arguments.captions)
        )
    print(_format_evaluation(evaluation))
    if arguments.json:
        write_file(arguments.json, (json.dumps(asdict(evaluation), indent=2) + "\n").encode())
    return 0


def _make_request(distilled: Distilled | None, arguments: Namespace) -> ImageRequest:
    default_steps = None if distilled and distilled.timesteps else TEACHER_STEPS
    steps = default_steps if arguments.steps is None else arguments.steps
    return ImageRequest("", steps=steps, guidance=arguments.guidance, sampler=arguments.sampler)


def _compare_with_teacher(arguments: Namespace) -> int:
    if arguments.captions <= NEIGHBOURS:
        problem = f"--captions {arguments.captions} is too small for metrics that compare sets of pictures"
        raise InvalidRequest(problem, allowed=f"{NEIGHBOURS + 1} or more")
    teacher = _teacher_variant(arguments)
    default_guidance = teacher.pipeline.manifest.defaults.guidance
    guidance = default_guidance if arguments.guidance is None else arguments.guidance
    students = [student_setup(open_pipeline(name, arguments), guidance) for name in arguments.names]
    captions = _evaluation_prompts(arguments, teacher.pipeline)
    encoders = MetricEncoders(
        arguments.clip and open_clip(arguments.clip), arguments.inception and open_inception(arguments.inception)
    )
    with show_progress() as report:
        evaluation, comparison = evaluate_students(teacher, students, captions, report, encoders)
    table = format_table(evaluation_columns(evaluation), evaluation_rows(evaluation))
    print(f"{table}\n\n{summarize_evaluation(evaluation)}")
    if arguments.json:
        write_file(arguments.json, evaluation_to_json(evaluation).encode())
    if arguments.out:
        page = render_evaluation_page(evaluation, comparison.prompts, comparison.pictures)
        write_file(arguments.out, page.encode())
        print(f"{arguments.out}: report with plots and pictures")
    return 0


def _teacher_variant(arguments: Namespace) -> GenerationSetup:
    pipeline = open_pipeline(arguments.against, arguments)
    steps = TEACHER_STEPS if arguments.steps is None else arguments.steps
    request = ImageRequest("", steps=steps, guidance=arguments.guidance, sampler=arguments.sampler)
    return GenerationSetup(f"teacher, {steps} steps", pipeline, request)


def _evaluation_prompts(arguments: Namespace, teacher: Pipeline) -> CaptionSet:
    if arguments.prompts is None:
        size = teacher.manifest.defaults.width, teacher.manifest.defaults.height
        if size != (CANVAS, CANVAS):
            problem = (
                f"{teacher.manifest.name} generates {size[0]}x{size[1]} pixels; without --prompts, only pictures of "
                f"{CANVAS}x{CANVAS} pixels can be scored"
            )
            raise InvalidRequest(problem, fix="give prompts: --prompts FILE")
        return shapes_caption_set(arguments.captions)
    prompts = read_prompts(arguments.prompts)
    # Prompts are repeated where the file has too few. Pictures of equal prompts still differ, because each picture has
    # a seed of its own.
    return CaptionSet(tuple(prompts[number % len(prompts)] for number in range(arguments.captions)))


def _format_evaluation(evaluation: CaptionEvaluation) -> str:
    rows = [
        [name.replace("_", " "), *_format_share(share), _format_share(evaluation.ceiling[name])[0]]
        for name, share in evaluation.scores.items()
    ]
    settings = f"{evaluation.captions} captions, {evaluation.steps} {evaluation.sampler} steps"
    return (
        f"{settings}, guidance {evaluation.guidance:g}, {evaluation.seconds:.3f} s per picture\n\n"
        f"{format_table(['', 'share', '95 % interval', 'autoencoder alone'], rows)}\n\n"
        f"PSNR to ideal renderings: {evaluation.rerender:.1f} dB"
    )


def _format_share(share: Share) -> tuple[str, str]:
    return f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"
