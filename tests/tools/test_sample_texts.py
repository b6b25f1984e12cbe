"""The sample holds texts of all three kinds, at places where they stand, the same for the same seed."""

from pathlib import Path

import pytest

from tools.sample_texts import COUNTS, Text, draw_sample, format_sample, last_commit, main, read_texts
from tools.vocabulary import SOURCE

MODULE = '''"""A module."""

LIMIT = 3
"""Largest number."""
# A comment
# of two lines.
SIZE = 4  # in bytes
WIDTH = 5  # in pixels  # noqa: E501


def check(size: int) -> None:
    """Check a size."""
    if size > LIMIT:
        message = f"size is {size}"
        raise ValueError(message + "!")
    raise OSError
'''


def test_texts_of_each_kind_are_read_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(MODULE, encoding="utf-8")
    assert sorted(read_texts(tmp_path)) == [
        Text("comment", "sizes.py", 5, "# A comment\n# of two lines.\nSIZE = 4  # in bytes"),
        Text("comment", "sizes.py", 7, "SIZE = 4  # in bytes"),
        Text("comment", "sizes.py", 8, "WIDTH = 5  # in pixels  # noqa: E501"),
        Text("docstring", "sizes.py", 1, "A module."),
        Text("docstring", "sizes.py", 4, "LIMIT = 3\nLargest number."),
        Text("docstring", "sizes.py", 12, "def check(size: int) -> None:\nCheck a size."),
        Text("message", "sizes.py", 15, "message = f'size is {size}'\nraise ValueError(message + '!')"),
    ]


def test_the_sample_follows_from_the_seed_alone() -> None:
    texts = list(read_texts(SOURCE))
    sample = draw_sample(texts, "a")
    assert sample == draw_sample(reversed(texts), "a") != draw_sample(texts, "b")
    assert {kind: sum(text.kind == kind for text in sample) for kind in COUNTS} == COUNTS


def test_the_sample_of_the_last_commit_is_printed_with_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    sample = draw_sample(read_texts(SOURCE), last_commit())
    assert capsys.readouterr().out == format_sample(sample, last_commit()) + "\n"
    assert f"\n40. message {sample[-1].file}:{sample[-1].line}\n" in format_sample(sample, last_commit())
