"""Traceback summaries: innermost frame first, without messages."""

import pytest

from stillhouse.errors import BackendFailed
from stillhouse.serve.engine.output import traceback_summary


def inner(prompt: str) -> None:
    raise ValueError(f"cannot draw {prompt}")


def outer(prompt: str) -> None:
    try:
        inner(prompt)
    except ValueError as error:
        raise BackendFailed(f"failed: {error}") from None


def deep(left: int) -> None:
    if left == 0:
        raise ValueError("deep")
    deep(left - 1)


def test_summary_is_innermost_first_without_messages() -> None:
    with pytest.raises(BackendFailed) as caught:
        outer("my secret")
    summary = traceback_summary(caught.value)
    names = [place.split()[1] for place in summary.split(" < ")]
    assert names[:2] == ["inner", "outer"]
    assert summary.startswith("engine/test_output.py:")
    assert "secret" not in summary


def test_error_that_was_not_raised_has_the_summary_of_its_cause() -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        deep(3)
    error = BackendFailed("drawing failed")
    error.__cause__ = caught.value
    assert traceback_summary(error) == traceback_summary(caught.value) != ""
    assert traceback_summary(BackendFailed("never raised")) == ""


def test_number_of_frames_is_bounded() -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        deep(100)
    assert traceback_summary(caught.value).count(" < ") == 23
