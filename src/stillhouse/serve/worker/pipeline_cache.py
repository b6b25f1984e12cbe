"""The pipelines that are open: as many as memory allows, the one not used for longest closed first."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from stillhouse.measure.memory import own_resident_bytes, release_memory
from stillhouse.pipelines.pipeline import Pipeline


@dataclass(slots=True)
class PipelineCache(Mapping[str, Pipeline]):
    """Pipelines by name, opened when they are first asked for. To be used from one thread.

    Args:
        opened: opens one, by name.
        names: of all that there are.
        budget: bytes; the one that is asked for stays open even where it alone needs more.
        used: bytes of this process.
        freed: gives back what a closed one has held, before it is looked whether that was enough.
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
        """Close what does not fit; the names of what was closed."""
        closed = []
        while len(self._loaded) > 1 and self.memory_used() > self.budget:
            name = next(iter(self._loaded))
            del self._loaded[name]  # and not popitem, which would hold it while it is looked at what is free
            closed.append(name)
            self.free_memory()
        return closed

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of those in memory, the one not used for longest first."""
        return tuple(self._loaded)
