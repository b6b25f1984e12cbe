"""The templates of pages."""

from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.html.extra import require_extra

STYLES = Path(__file__).parent


def jinja_environment(templates: Path) -> Any:
    """A directory's templates and the styles of all pages: words from outside are escaped, and a name that is not known
    is an error.

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
