"""Report on the comparison of students with their teacher, as JSON, as a table, and as a sentence for each student."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic

from stillhouse.distill.evaluation.comparison import (
    NO_ENCODERS,
    CaptionSet,
    Comparison,
    EvaluationResult,
    GenerationSetup,
    ProgressFn,
    ScoreDelta,
    compare_setups,
    comparison_setups,
)
from stillhouse.distill.evaluation.metric_encoders import MetricEncoders
from stillhouse.measure.machine import Machine, installed_versions, read_machine
from stillhouse.shapes.feature_encoder import open_feature_encoder

_PACKAGES = ("onnxruntime", "openvino", "numpy")
_SCORES = {"all_correct": "all correct", "strict": "strict"}
LEGEND = "Brackets: 95 % intervals. Delta to the teacher: percentage points, paired over captions and seeds."
"""Explanation of the numbers in brackets and of the column "delta to the teacher" in the table of a report."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Measurements of students, their teacher and baselines (the teacher at few steps), and how they were made.

    Args:
        teacher: name of the teacher's pipeline.
        students: names of the students' setups (pipelines with steps, sampler and guidance).
        caption_count: number of prompts, which is the number of compared pictures of each setup.
        results: measurements of each setup, the teacher's first.
        encoder_sha256: SHA-256 of the weights of the feature encoder; features of other encoders are not comparable.
        machine: hardware on which the evaluation ran.
        versions: versions of the packages that ran the networks, by package.
        started: time of the start in UTC, ISO 8601.
        seconds: duration of the evaluation.
    """

    teacher: str
    students: tuple[str, ...]
    caption_count: int
    results: tuple[EvaluationResult, ...]
    encoder_sha256: str
    machine: Machine
    versions: Mapping[str, str]
    started: str
    seconds: float

    def result_of(self, name: str) -> EvaluationResult:
        """Return the measurements of the setup that has this name."""
        return next(result for result in self.results if result.name == name)


def evaluate_students(
    teacher: GenerationSetup,
    students: Sequence[GenerationSetup],
    captions: CaptionSet,
    progress: ProgressFn = lambda name, done, total: None,
    encoders: MetricEncoders = NO_ENCODERS,
) -> tuple[EvaluationReport, Comparison]:
    """Compare students with their teacher at its default number of steps and at few steps.

    Args:
        teacher: the teacher's pipeline with its default number of steps.
        students: the students' pipelines with their guidance scale.
        captions: prompts of the pictures; prompt n has the seed n.
        progress: receives the number of pictures generated for each setup.
        encoders: encoders for CLIP score and FID; each of these is measured only where its encoder is given.

    Returns:
        the report, and the comparison from which it was made, with example pictures.

    Raises:
        InvalidRequest: a pipeline refuses its request.
    """
    start, started = monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    encoder = open_feature_encoder()
    setups = comparison_setups(teacher, students)
    comparison = compare_setups(setups, captions, encoder, progress, encoders)
    report = EvaluationReport(
        teacher=teacher.pipeline.manifest.name,
        students=tuple(setup.name for setup in setups[1 : 1 + len(students)]),
        caption_count=len(captions.prompts),
        results=comparison.results,
        encoder_sha256=encoder.checksum,
        machine=read_machine(),
        versions=installed_versions(_PACKAGES),
        started=started,
        seconds=monotonic() - start,
    )
    return report, comparison


def evaluation_to_json(report: EvaluationReport) -> str:
    """Return the report as the text of a JSON document, with all measurements."""
    return json.dumps(asdict(report), indent=1) + "\n"


def summarize_evaluation(report: EvaluationReport) -> str:
    """Return a text with one sentence for each student: steps, speed-up and quality relative to the teacher."""
    teacher = report.results[0]
    sentences = []
    for name in report.students:
        student = report.result_of(name)
        speed = f"{teacher.latency.median / student.latency.median:.1f} times as fast as its teacher"
        steps = f"{student.steps} step{'s' if student.steps > 1 else ''} instead of {teacher.steps} guided ones"
        if "strict" in student.deltas:
            quality = f"strict score {_format_delta(student.deltas['strict'], ' points')} relative to the teacher"
        else:
            quality = f"{student.psnr:.1f} dB PSNR to pictures of the teacher"
        sentences.append(f"{name}: {steps}, {speed}; {quality}.")
    return " ".join(sentences)


def evaluation_columns(report: EvaluationReport) -> list[str]:
    """Return the column headings of the report's table; columns without measurements are left out."""
    shares = [heading for label in _SCORES.values() for heading in (label, "delta to the teacher")]
    scored = [*shares, "rerendered"] if report.results[0].scores else []
    measured = ["latency (ms)", *scored, "PSNR", "SSIM", "Frechet", "precision", "recall", "diversity"]
    return ["setup", "denoiser rows", *measured, *_external_metrics(report.results[0])]


def evaluation_rows(report: EvaluationReport) -> list[list[str]]:
    """Return the cells of the report's table: one row for each setup, in the order of `evaluation_columns`."""
    return [_result_row(result, result is report.results[0]) for result in report.results]


def _result_row(result: EvaluationResult, is_first: bool) -> list[str]:
    scored = []
    if result.scores:
        for name in _SCORES:
            share = result.scores[name]
            scored.append(f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})")
            scored.append("" if is_first else _format_delta(result.deltas[name]))
        scored.append(f"{result.rerender:.1f} dB")
    similarity = ("", "") if is_first else (f"{result.psnr:.1f} dB", f"{result.ssim:.3f}")
    return [
        result.name,
        str(result.denoiser_rows),
        f"{1000 * result.latency.median:.1f}",
        *scored,
        *similarity,
        *(f"{value:.2f}" for value in (result.frechet, result.precision, result.recall)),
        f"{100 * result.relative_diversity:.0f} %",
        *_external_metrics(result).values(),
    ]


def _format_delta(delta: ScoreDelta, unit: str = "") -> str:
    return f"{100 * delta.value:+.1f}{unit} ({100 * delta.low:+.1f} to {100 * delta.high:+.1f})"


def _external_metrics(result: EvaluationResult) -> dict[str, str]:
    """Return the formatted CLIP score and FID by column heading; a metric that was not measured has no entry."""
    return {
        name: f"{value:{form}}"
        for name, value, form in (("CLIP", result.clip, ".1f"), ("FID", result.fid, ".2f"))
        if value is not None
    }
