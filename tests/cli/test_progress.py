import io
import sys

import pytest

from stillhouse.cli.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as report:
        report("a circle", 0.5, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("watched", [True, False])
def test_progress_bar_is_on_stderr(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    screen, lines = Terminal(), Terminal() if watched else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", lines)
    monkeypatch.setenv("TERM", "xterm")
    with show_progress() as report:
        report("[a circle]", 1, 2)
        print("a-circle-0.png")
        report("[a circle]", 2, 2)
    assert "[a circle]" in screen.getvalue()
    assert "100%" in screen.getvalue()
    assert ("a-circle-0.png" in lines.getvalue()) is not watched
