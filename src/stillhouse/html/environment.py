"""The templates of pages."""

from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.html.extra import extra

STYLES = Path(__file__).parent


def environment(templates: Path) -> Any:
    """A directory's templates and the styles of all pages: words from outside are escaped, and a name that is not known
    is an error.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    return _made(extra("jinja2"), templates)


@cache
def _made(jinja2: Any, templates: Path) -> Any:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, STYLES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
