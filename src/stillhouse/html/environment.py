"""The Jinja environment of the HTML reports."""

from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.html.extra import require_extra

STYLES = Path(__file__).parent


def jinja_environment(templates: Path) -> Any:
    """Return a Jinja environment that loads templates from a directory and from the directory of the shared styles.

    Values are escaped for HTML. Rendering fails where a template uses a variable that is not given.

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
