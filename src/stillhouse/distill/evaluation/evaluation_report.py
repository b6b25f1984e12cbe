"""The verdict: what the judge found, with everything that is needed to read it, as one JSON document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
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
from stillhouse.errors import InvalidRequest
from stillhouse.json_decode import DecodeError, decode
from stillhouse.measure.machine import Machine, installed_versions, read_machine
from stillhouse.shapes.feature_encoder import open_feature_encoder

_PACKAGES = ("onnxruntime", "openvino", "numpy")
_SCORES = {"all_correct": "all correct", "strict": "strict"}
LEGEND = "In brackets 95 % intervals; to the teacher: points, paired, of the same captions and seeds."
"""What the table's figures are."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What the judge found.

    Args:
        teacher: name of the first way's pipeline.
        students: names of the ways that were distilled from it.
        captions: pictures of each way.
        standings: of every way, the teacher's first.
        encoder: SHA-256 of the weights by whose features sets were compared.
        machine, versions: on which it was measured.
        started: UTC, ISO 8601.
        seconds: that it took.
    """

    teacher: str
    students: tuple[str, ...]
    captions: int
    standings: tuple[EvaluationResult, ...]
    encoder: str
    machine: Machine
    versions: Mapping[str, str]
    started: str
    seconds: float

    def result_of(self, name: str) -> EvaluationResult:
        """The standing of the way of that name."""
        return next(one for one in self.standings if one.name == name)


def evaluate_students(
    teacher: GenerationSetup,
    students: Sequence[GenerationSetup],
    captions: CaptionSet,
    progress: ProgressFn = lambda name, done, total: None,
    encoders: MetricEncoders = NO_ENCODERS,
) -> tuple[EvaluationReport, Comparison]:
    """Compare students with their teacher, and with the teacher in a hurry; see `judge.compare` and `judge.ways_of`.

    Args:
        teacher: as it draws by default.
        students: distilled from it.
        subject: what is drawn.
        progress, brought: as in `compare`.
    """
    began, started = monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    encoder = open_feature_encoder()
    ways = comparison_setups(teacher, students)
    found = compare_setups(ways, captions, encoder, progress, encoders)
    verdict = EvaluationReport(
        teacher=teacher.pipeline.manifest.name,
        students=tuple(way.name for way in ways[1 : 1 + len(students)]),
        captions=len(captions.prompts),
        standings=found.results,
        encoder=encoder.checksum,
        machine=read_machine(),
        versions=installed_versions(_PACKAGES),
        started=started,
        seconds=monotonic() - began,
    )
    return verdict, found


def evaluation_to_json(report: EvaluationReport) -> str:
    """A document that `read_verdict` reads."""
    return json.dumps(asdict(report), indent=1) + "\n"


def read_evaluation(path: Path) -> EvaluationReport:
    """The verdict of a file.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return decode(EvaluationReport, json.loads(path.read_text(encoding="utf-8")))
    except (DecodeError, ValueError) as error:
        raise InvalidRequest(f"{path} is no verdict: {error}", allowed="what stillhouse judge --json wrote") from None


def summarize_evaluation(report: EvaluationReport) -> str:
    """What it comes to, in one sentence for each student."""
    teacher = report.standings[0]
    told = []
    for name in report.students:
        one = report.result_of(name)
        quick = f"{teacher.alone.median / one.alone.median:.1f} times as quick as its teacher"
        rows = f"{one.steps} step{'s' if one.steps > 1 else ''} instead of {teacher.steps} guided ones"
        if "strict" in one.gaps:
            gap = one.gaps["strict"]
            told.append(f"{name}: {rows}, {quick}; clean and all correct {_format_delta(gap, ' points')} against it.")
        else:
            told.append(f"{name}: {rows}, {quick}; {one.psnr:.1f} dB from its pictures.")
    return " ".join(told)


def evaluation_columns(report: EvaluationReport) -> list[str]:
    """Headings of the table."""
    shares = [heading for told in _SCORES.values() for heading in (told, "to the teacher")]
    scored = [*shares, "redrawn"] if report.standings[0].scores else []
    measured = ["ms alone", *scored, "PSNR", "SSIM", "Frechet", "precision", "recall", "diversity"]
    return ["way", "evaluations", *measured, *_external_metrics(report.standings[0])]


def evaluation_rows(report: EvaluationReport) -> list[list[str]]:
    """A row for each way."""
    return [_result_row(one, one is report.standings[0]) for one in report.standings]


def _result_row(result: EvaluationResult, is_first: bool) -> list[str]:
    scored = []
    if result.scores:
        for name in _SCORES:
            share, gap = result.scores[name], result.gaps[name]
            scored.append(f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})")
            scored.append("" if is_first else _format_delta(gap))
        scored.append(f"{result.rerender:.1f} dB")
    return [
        result.name,
        str(result.rows),
        f"{1000 * result.alone.median:.1f}",
        *scored,
        "" if is_first else f"{result.psnr:.1f} dB",
        "" if is_first else f"{result.ssim:.3f}",
        f"{result.frechet:.2f}",
        f"{result.precision:.2f}",
        f"{result.recall:.2f}",
        f"{100 * result.diversity:.0f} %",
        *_external_metrics(result).values(),
    ]


def _format_delta(delta: ScoreDelta, unit: str = "") -> str:
    return f"{100 * delta.value:+.1f}{unit} ({100 * delta.low:+.1f} to {100 * delta.high:+.1f})"


def _external_metrics(result: EvaluationResult) -> dict[str, str]:
    """What the encoders say that a user brought, by heading."""
    return {
        name: f"{value:{form}}"
        for name, value, form in (("CLIP", result.clip, ".1f"), ("FID", result.fid, ".2f"))
        if value is not None
    }
