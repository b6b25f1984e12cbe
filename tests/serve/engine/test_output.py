"""The way to an error: places, the innermost first, and nothing of what was said."""

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


def test_places_come_from_the_inside_out_and_tell_no_prompt() -> None:
    with pytest.raises(BackendFailed) as caught:
        outer("my secret")
    way = traceback_summary(caught.value)
    names = [place.split()[1] for place in way.split(" < ")]
    assert names[:2] == ["inner", "outer"]
    assert way.startswith("engine/test_output.py:")
    assert "secret" not in way


def test_an_error_that_was_told_but_not_raised_leads_to_its_cause() -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        deep(3)
    told = BackendFailed("drawing failed")
    told.__cause__ = caught.value
    assert traceback_summary(told) == traceback_summary(caught.value) != ""
    assert traceback_summary(BackendFailed("never raised")) == ""


def test_only_so_many_places_are_told() -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        deep(100)
    assert traceback_summary(caught.value).count(" < ") == 23
