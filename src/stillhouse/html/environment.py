"""The Jinja environment of the HTML reports."""

from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.html.extra import require_extra

STYLES = Path(__file__).parent


def jinja_environment(templates: Path) -> Any:
    """Return the Jinja environment of a template directory and the shared styles.

    Values are escaped. A name that a template's context does not have is an error.

    Args:
        templates: directory of the templates.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    return _make_environment(require_extra("jinja2"), templates)


@cache
def _make_environment(jinja2: Any, templates: Path) -> Any:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, STYLES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
