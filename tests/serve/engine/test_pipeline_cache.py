"""Pipeline cache: loaded on access, least recently used evicted first."""

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
    """Pipelines of one byte each, as long as they are referenced."""

    budget: int
    opened: list[str] = field(default_factory=list)

    def make_cache(self) -> PipelineCache:
        def open_(name: str) -> Any:
            self.opened.append(name)
            return name.upper()

        cache = PipelineCache(open_, NAMES, self.budget, lambda: len(cache.loaded), free_memory=lambda: None)
        return cache


def test_pipelines_within_the_budget_are_loaded_once() -> None:
    memory = Memory(4)
    cache = memory.make_cache()
    assert [cache[name] for name in "abcabd"] == list("ABCABD")  # type: ignore[comparison-overlap]
    assert memory.opened == list("abcd")


def test_least_recently_used_is_evicted_first() -> None:
    memory = Memory(2)
    cache = memory.make_cache()
    for name in "abac":
        cache[name]
        cache.evict()
    assert cache.loaded == ("a", "c")
    cache["b"]
    assert memory.opened == list("abcb")


def test_single_pipeline_stays_loaded() -> None:
    memory = Memory(0)
    cache = memory.make_cache()
    assert cache["a"] == "A"  # type: ignore[comparison-overlap]
    assert cache.evict() == []
    cache["b"]
    assert cache.evict() == ["a"]


@given(st.lists(st.sampled_from(NAMES), max_size=30), st.integers(1, 4))
def test_cache_fits_the_budget_after_eviction(names: list[str], budget: int) -> None:
    cache = Memory(budget).make_cache()
    for name in names:
        assert cache[name] == name.upper()  # type: ignore[comparison-overlap]
        cache.evict()
        assert len(cache.loaded) <= budget and cache.loaded[-1] == name


def test_evicted_pipeline_is_freed_before_the_next_eviction() -> None:
    """A pipeline has reference cycles, so it would stay until the next garbage collection."""
    references: dict[str, weakref.ref[Pipeline]] = {}

    def opened(name: str) -> Pipeline:
        pipeline = Pipeline(find_pipeline("shapes"))
        references[name] = weakref.ref(pipeline)
        return pipeline

    cache = PipelineCache(
        opened, ("a", "b", "c"), 2, lambda: sum(reference() is not None for reference in references.values())
    )
    for name in ("a", "b", "c"):
        assert cache[name]
    assert cache.evict() == ["a"] and cache.loaded == ("b", "c")
    assert references["a"]() is None


def test_unknown_name_is_a_key_error() -> None:
    cache = Memory(2).make_cache()
    with pytest.raises(KeyError):
        cache["z"]
    assert list(cache) == list(NAMES) and len(cache) == 4
