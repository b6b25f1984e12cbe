"""The verdict as one page that stands alone."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillhouse.core import Picture
from stillhouse.distill.evaluation.evaluation_report import LEGEND, Verdict, head, lead, rows
from stillhouse.distill.views import score_plot
from stillhouse.html.environment import environment
from stillhouse.images.png import encode_png

TEMPLATES = Path(__file__).parent


def page(verdict: Verdict, prompts: Sequence[str], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """The page as text.

    Args:
        verdict: what it tells.
        prompts: of the pictures.
        pictures: by way, one for each prompt.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    shown = {name: [_data(picture) for picture in own] for name, own in pictures.items()}
    text: str = (
        environment(TEMPLATES)
        .get_template("judge.html.j2")
        .render(
            verdict=verdict,
            lead=lead(verdict),
            legend=LEGEND if verdict.standings[0].scores else "",
            head=head(verdict),
            rows=rows(verdict),
            plots=score_plot.plots(verdict),
            frame=score_plot,
            prompts=prompts,
            pictures=shown,
        )
    )
    return text


def _data(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"
