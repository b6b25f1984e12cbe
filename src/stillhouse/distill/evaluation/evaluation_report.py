"""The verdict: what the judge found, with everything that is needed to read it, as one JSON document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from stillhouse.distill.evaluation.comparison import (
    NOTHING,
    Compared,
    Gap,
    Progress,
    Standing,
    Subject,
    Way,
    compare,
    ways_of,
)
from stillhouse.distill.evaluation.metric_encoders import Brought
from stillhouse.errors import InvalidRequest
from stillhouse.json_decode import DecodeError, decode
from stillhouse.measure.machine import Machine, machine, versions
from stillhouse.shapes.feature_encoder import open_encoder

_PACKAGES = ("onnxruntime", "openvino", "numpy")
_SCORES = {"all_correct": "all correct", "strict": "strict"}
LEGEND = "In brackets 95 % intervals; to the teacher: points, paired, of the same captions and seeds."
"""What the table's figures are."""


@dataclass(frozen=True, slots=True)
class Verdict:
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
    standings: tuple[Standing, ...]
    encoder: str
    machine: Machine
    versions: Mapping[str, str]
    started: str
    seconds: float

    def of(self, name: str) -> Standing:
        """The standing of the way of that name."""
        return next(one for one in self.standings if one.name == name)


def judge_students(
    teacher: Way,
    students: Sequence[Way],
    subject: Subject,
    progress: Progress = lambda name, done, total: None,
    brought: Brought = NOTHING,
) -> tuple[Verdict, Compared]:
    """Compare students with their teacher, and with the teacher in a hurry; see `judge.compare` and `judge.ways_of`.

    Args:
        teacher: as it draws by default.
        students: distilled from it.
        subject: what is drawn.
        progress, brought: as in `compare`.
    """
    began, started = monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    encoder = open_encoder()
    ways = ways_of(teacher, students)
    found = compare(ways, subject, encoder, progress, brought)
    verdict = Verdict(
        teacher=teacher.pipeline.manifest.name,
        students=tuple(way.name for way in ways[1 : 1 + len(students)]),
        captions=len(subject.prompts),
        standings=found.standings,
        encoder=encoder.checksum,
        machine=machine(),
        versions=versions(_PACKAGES),
        started=started,
        seconds=monotonic() - began,
    )
    return verdict, found


def verdict_as_json(verdict: Verdict) -> str:
    """A document that `read_verdict` reads."""
    return json.dumps(asdict(verdict), indent=1) + "\n"


def read_verdict(path: Path) -> Verdict:
    """The verdict of a file.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return decode(Verdict, json.loads(path.read_text(encoding="utf-8")))
    except (DecodeError, ValueError) as error:
        raise InvalidRequest(f"{path} is no verdict: {error}", allowed="what stillhouse judge --json wrote") from None


def lead(verdict: Verdict) -> str:
    """What it comes to, in one sentence for each student."""
    teacher = verdict.standings[0]
    told = []
    for name in verdict.students:
        one = verdict.of(name)
        quick = f"{teacher.alone.median / one.alone.median:.1f} times as quick as its teacher"
        rows = f"{one.steps} step{'s' if one.steps > 1 else ''} instead of {teacher.steps} guided ones"
        if "strict" in one.gaps:
            gap = one.gaps["strict"]
            told.append(f"{name}: {rows}, {quick}; clean and all correct {_points(gap, ' points')} against it.")
        else:
            told.append(f"{name}: {rows}, {quick}; {one.psnr:.1f} dB from its pictures.")
    return " ".join(told)


def head(verdict: Verdict) -> list[str]:
    """Headings of the table."""
    shares = [heading for told in _SCORES.values() for heading in (told, "to the teacher")]
    scored = [*shares, "redrawn"] if verdict.standings[0].scores else []
    measured = ["ms alone", *scored, "PSNR", "SSIM", "Frechet", "precision", "recall", "diversity"]
    return ["way", "evaluations", *measured, *_brought(verdict.standings[0])]


def rows(verdict: Verdict) -> list[list[str]]:
    """A row for each way."""
    return [_row(one, one is verdict.standings[0]) for one in verdict.standings]


def _row(one: Standing, is_first: bool) -> list[str]:
    scored = []
    if one.scores:
        for name in _SCORES:
            share, gap = one.scores[name], one.gaps[name]
            scored.append(f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})")
            scored.append("" if is_first else _points(gap))
        scored.append(f"{one.rerender:.1f} dB")
    return [
        one.name,
        str(one.rows),
        f"{1000 * one.alone.median:.1f}",
        *scored,
        "" if is_first else f"{one.psnr:.1f} dB",
        "" if is_first else f"{one.ssim:.3f}",
        f"{one.frechet:.2f}",
        f"{one.precision:.2f}",
        f"{one.recall:.2f}",
        f"{100 * one.diversity:.0f} %",
        *_brought(one).values(),
    ]


def _points(gap: Gap, unit: str = "") -> str:
    return f"{100 * gap.value:+.1f}{unit} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def _brought(one: Standing) -> dict[str, str]:
    """What the encoders say that a user brought, by heading."""
    return {
        name: f"{value:{form}}"
        for name, value, form in (("CLIP", one.clip, ".1f"), ("FID", one.fid, ".2f"))
        if value is not None
    }
