"""The pipelines that are open: as many as memory allows, the one not used for longest closed first."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from stillhouse.measure.memory import give_back, resident_alone
from stillhouse.pipelines.pipeline import Pipeline


@dataclass(slots=True)
class Residents(Mapping[str, Pipeline]):
    """Pipelines by name, opened when they are first asked for. To be used from one thread.

    Args:
        opened: opens one, by name.
        names: of all that there are.
        budget: bytes; the one that is asked for stays open even where it alone needs more.
        used: bytes of this process.
        freed: gives back what a closed one has held, before it is looked whether that was enough.
    """

    opened: Callable[[str], Pipeline]
    names: tuple[str, ...]
    budget: int
    used: Callable[[], int] = lambda: resident_alone(os.getpid())
    freed: Callable[[], None] = give_back
    _open: OrderedDict[str, Pipeline] = field(default_factory=OrderedDict)

    def __getitem__(self, name: str) -> Pipeline:
        if name in self._open:
            self._open.move_to_end(name)
        elif name in self.names:
            self.fit()
            self._open[name] = self.opened(name)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def fit(self) -> list[str]:
        """Close what does not fit; the names of what was closed."""
        closed = []
        while len(self._open) > 1 and self.used() > self.budget:
            name = next(iter(self._open))
            del self._open[name]  # and not popitem, which would hold it while it is looked at what is free
            closed.append(name)
            self.freed()
        return closed

    @property
    def open(self) -> tuple[str, ...]:
        """Names of those in memory, the one not used for longest first."""
        return tuple(self._open)
