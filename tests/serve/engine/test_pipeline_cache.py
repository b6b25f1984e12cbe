"""Residents: open when asked for, closed when memory is short, the one not used for longest first."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.engine.executor import PipelineCache

NAMES = ("a", "b", "c", "d")


@dataclass
class Memory:
    """Pipelines that take a byte each, as long as somebody holds them."""

    budget: int
    opened: list[str] = field(default_factory=list)

    def make_cache(self) -> PipelineCache:
        def open_(name: str) -> Any:
            self.opened.append(name)
            return name.upper()

        residents = PipelineCache(open_, NAMES, self.budget, lambda: len(residents.loaded))
        return residents


def test_each_is_opened_once_while_there_is_room() -> None:
    memory = Memory(4)
    residents = memory.make_cache()
    assert [residents[name] for name in "abcabd"] == list("ABCABD")  # type: ignore[comparison-overlap]
    assert memory.opened == list("abcd")


def test_the_one_not_used_for_longest_is_closed_first() -> None:
    memory = Memory(2)
    residents = memory.make_cache()
    for name in "abac":
        residents[name]
        residents.evict()
    assert residents.loaded == ("a", "c")
    residents["b"]
    assert memory.opened == list("abcb")


def test_one_alone_stays_open_whatever_it_needs() -> None:
    memory = Memory(0)
    residents = memory.make_cache()
    assert residents["a"] == "A"  # type: ignore[comparison-overlap]
    assert residents.evict() == []
    residents["b"]
    assert residents.evict() == ["a"]


@given(st.lists(st.sampled_from(NAMES), max_size=30), st.integers(1, 4))
def test_never_more_than_fit_after_a_look(asked: list[str], budget: int) -> None:
    residents = Memory(budget).make_cache()
    for name in asked:
        assert residents[name] == name.upper()  # type: ignore[comparison-overlap]
        residents.evict()
        assert len(residents.loaded) <= budget and residents.loaded[-1] == name


def test_what_is_closed_gives_its_memory_back_before_another_is_closed() -> None:
    """A pipeline refers to itself, so it would stay until the collector comes by."""
    known: dict[str, weakref.ref[Pipeline]] = {}

    def opened(name: str) -> Pipeline:
        pipeline = Pipeline(find_pipeline("shapes"))
        known[name] = weakref.ref(pipeline)
        return pipeline

    residents = PipelineCache(opened, ("a", "b", "c"), 2, lambda: sum(one() is not None for one in known.values()))
    for name in ("a", "b", "c"):
        assert residents[name]
    assert residents.evict() == ["a"] and residents.loaded == ("b", "c")
    assert known["a"]() is None


def test_there_is_no_other() -> None:
    residents = Memory(2).make_cache()
    with pytest.raises(KeyError):
        residents["z"]
    assert list(residents) == list(NAMES) and len(residents) == 4
