"""The generated pages: where each lies, and the function that renders it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.distill.settings import DistillSettings
from stillhouse.serve.settings import ServerSettings
from tools.docs.api_page import render_api_page
from tools.docs.cli_page import normalize_help, render_cli_page
from tools.docs.markdown import replace_section
from tools.docs.python_page import render_python_page
from tools.docs.settings_table import render_settings


@dataclass(frozen=True, slots=True)
class Page:
    """A file that is generated, as a whole or between markers.

    Args:
        path: of the file, relative to the root of the repository.
        render: returns the new text of the file; called with its present text.
        normalize: removes the differences that do not count from a text before it is compared.
    """

    path: str
    render: Callable[[str], str]
    normalize: Callable[[str], str] = str

    def read(self, root: Path) -> str:
        """Return the present text of the file, "" if there is none."""
        path = root / self.path
        return path.read_text(encoding="utf-8") if path.exists() else ""


def is_current(page: Page, root: Path) -> bool:
    """Return whether the file of a page under `root` holds what the code says."""
    text = page.read(root)
    return text != "" and page.normalize(text) == page.normalize(page.render(text))


def _settings_page(path: str, settings_class: type, text: str) -> str:
    return replace_section(text, "settings", render_settings(settings_class), path)


def _make_settings_page(path: str, settings_class: type) -> Page:
    return Page(path, partial(_settings_page, path, settings_class))


PAGES = (
    Page("docs/cli.md", lambda text: render_cli_page(), normalize_help),
    _make_settings_page("docs/serving.md", ServerSettings),
    _make_settings_page("docs/distillation.md", DistillSettings),
    Page("docs/api.md", lambda text: render_api_page()),
    Page("docs/python.md", lambda text: render_python_page()),
)
"""Every generated page."""
