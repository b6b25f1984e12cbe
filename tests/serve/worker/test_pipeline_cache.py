"""Residents: open when asked for, closed when memory is short, the one not used for longest first."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.worker.pipeline_cache import Residents

NAMES = ("a", "b", "c", "d")


@dataclass
class Memory:
    """Pipelines that take a byte each, as long as somebody holds them."""

    budget: int
    opened: list[str] = field(default_factory=list)

    def residents(self) -> Residents:
        def open_(name: str) -> Any:
            self.opened.append(name)
            return name.upper()

        residents = Residents(open_, NAMES, self.budget, lambda: len(residents.open))
        return residents


def test_each_is_opened_once_while_there_is_room() -> None:
    memory = Memory(4)
    residents = memory.residents()
    assert [residents[name] for name in "abcabd"] == list("ABCABD")  # type: ignore[comparison-overlap]
    assert memory.opened == list("abcd")


def test_the_one_not_used_for_longest_is_closed_first() -> None:
    memory = Memory(2)
    residents = memory.residents()
    for name in "abac":
        residents[name]
        residents.fit()
    assert residents.open == ("a", "c")
    residents["b"]
    assert memory.opened == list("abcb")


def test_one_alone_stays_open_whatever_it_needs() -> None:
    memory = Memory(0)
    residents = memory.residents()
    assert residents["a"] == "A"  # type: ignore[comparison-overlap]
    assert residents.fit() == []
    residents["b"]
    assert residents.fit() == ["a"]


@given(st.lists(st.sampled_from(NAMES), max_size=30), st.integers(1, 4))
def test_never_more_than_fit_after_a_look(asked: list[str], budget: int) -> None:
    residents = Memory(budget).residents()
    for name in asked:
        assert residents[name] == name.upper()  # type: ignore[comparison-overlap]
        residents.fit()
        assert len(residents.open) <= budget and residents.open[-1] == name


def test_what_is_closed_gives_its_memory_back_before_another_is_closed() -> None:
    """A pipeline refers to itself, so it would stay until the collector comes by."""
    known: dict[str, weakref.ref[Pipeline]] = {}

    def opened(name: str) -> Pipeline:
        pipeline = Pipeline(find_pipeline("shapes"))
        known[name] = weakref.ref(pipeline)
        return pipeline

    residents = Residents(opened, ("a", "b", "c"), 2, lambda: sum(one() is not None for one in known.values()))
    for name in ("a", "b", "c"):
        assert residents[name]
    assert residents.fit() == ["a"] and residents.open == ("b", "c")
    assert known["a"]() is None


def test_there_is_no_other() -> None:
    residents = Memory(2).residents()
    with pytest.raises(KeyError):
        residents["z"]
    assert list(residents) == list(NAMES) and len(residents) == 4
