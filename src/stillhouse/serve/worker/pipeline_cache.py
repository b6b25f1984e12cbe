"""LRU cache of loaded pipelines with a memory budget."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from stillhouse.measure.memory import own_resident_bytes, release_memory
from stillhouse.pipelines.pipeline import Pipeline


@dataclass(slots=True)
class PipelineCache(Mapping[str, Pipeline]):
    """Pipelines by name, loaded on first access. Use from one thread.

    Args:
        open_pipeline: loads a pipeline by name.
        names: names of all pipelines.
        budget: memory budget in bytes. The requested pipeline stays loaded even if it alone exceeds the budget.
        memory_used: returns the memory of this process in bytes.
        free_memory: releases the memory of an unloaded pipeline before `memory_used` is read again.
    """

    open_pipeline: Callable[[str], Pipeline]
    names: tuple[str, ...]
    budget: int
    memory_used: Callable[[], int] = lambda: own_resident_bytes(os.getpid())
    free_memory: Callable[[], None] = release_memory
    _loaded: OrderedDict[str, Pipeline] = field(default_factory=OrderedDict)

    def __getitem__(self, name: str) -> Pipeline:
        if name in self._loaded:
            self._loaded.move_to_end(name)
        elif name in self.names:
            self.evict()
            self._loaded[name] = self.open_pipeline(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def evict(self) -> list[str]:
        """Unload least recently used pipelines until the rest fits the budget; return their names."""
        evicted = []
        while len(self._loaded) > 1 and self.memory_used() > self.budget:
            name = next(iter(self._loaded))
            del self._loaded[name]  # not popitem: its result would keep the pipeline alive
            evicted.append(name)
            self.free_memory()
        return evicted

    @property
    def loaded(self) -> tuple[str, ...]:
        """Return the names of loaded pipelines, the least recently used first."""
        return tuple(self._loaded)
