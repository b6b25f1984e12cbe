"""The verdict as one page that stands alone."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillhouse.core import Picture
from stillhouse.distill.evaluation.evaluation_report import (
    LEGEND,
    EvaluationReport,
    evaluation_columns,
    evaluation_rows,
    summarize_evaluation,
)
from stillhouse.distill.views import score_plot
from stillhouse.html.environment import jinja_environment
from stillhouse.images.png import encode_png

TEMPLATES = Path(__file__).parent


def render_evaluation_page(
    report: EvaluationReport, prompts: Sequence[str], pictures: Mapping[str, Sequence[Picture]]
) -> str:
    """The page as text.

    Args:
        verdict: what it tells.
        prompts: of the pictures.
        pictures: by way, one for each prompt.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    shown = {name: [_data_uri(picture) for picture in own] for name, own in pictures.items()}
    text: str = (
        jinja_environment(TEMPLATES)
        .get_template("judge.html.j2")
        .render(
            verdict=report,
            lead=summarize_evaluation(report),
            legend=LEGEND if report.standings[0].scores else "",
            head=evaluation_columns(report),
            rows=evaluation_rows(report),
            plots=score_plot.score_plots(report),
            frame=score_plot,
            prompts=prompts,
            pictures=shown,
        )
    )
    return text


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"
