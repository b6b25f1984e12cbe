"""Render the report that compares students with their teacher as a self-contained HTML page."""

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
from stillhouse.images.files import encode_png

TEMPLATES = Path(__file__).parent


def render_evaluation_page(
    report: EvaluationReport, prompts: Sequence[str], pictures: Mapping[str, Sequence[Picture]]
) -> str:
    """Render a report as a self-contained HTML page with table, plots and pictures, and return the HTML text.

    Args:
        report: the measurements.
        prompts: prompts of the shown pictures.
        pictures: by name of the setup (pipeline with steps, sampler and guidance), one picture for each prompt.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    images = {name: [_data_uri(picture) for picture in row] for name, row in pictures.items()}
    text: str = (
        jinja_environment(TEMPLATES)
        .get_template("evaluation.html.j2")
        .render(
            report=report,
            summary=summarize_evaluation(report),
            legend=LEGEND if report.results[0].scores else "",
            columns=evaluation_columns(report),
            rows=evaluation_rows(report),
            plots=score_plot.score_plots(report),
            frame=score_plot,
            prompts=prompts,
            pictures=images,
        )
    )
    return text


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"
