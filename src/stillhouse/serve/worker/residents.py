"""The pipelines that are open: as many as memory allows, the one not used for longest closed first."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from stillhouse.measure.memory import resident_alone
from stillhouse.models.pipeline import Pipeline


@dataclass(slots=True)
class Residents(Mapping[str, Pipeline]):
    """Pipelines by name, opened when they are first asked for. To be used from one thread.

    Args:
        opened: opens one, by name.
        names: of all that there are.
        budget: bytes; the one that is asked for stays open even where it alone needs more.
        used: bytes of this process.
    """

    opened: Callable[[str], Pipeline]
    names: tuple[str, ...]
    budget: int
    used: Callable[[], int] = lambda: resident_alone(os.getpid())
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
            name, _ = self._open.popitem(last=False)
            closed.append(name)
        return closed

    @property
    def open(self) -> tuple[str, ...]:
        """Names of those in memory, the one not used for longest first."""
        return tuple(self._open)
