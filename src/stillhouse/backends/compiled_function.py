"""Functions in C that installing the package compiles, where there is a C compiler."""

import ctypes
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from stillhouse.cpu import processor_flags
from stillhouse.errors import RuntimeMissing


@dataclass(frozen=True, slots=True)
class CompiledFunction:
    """A function in a library of its own, with another, `NAME_setup`, that is called once before.

    Args:
        name: name of the function; its library is `stillhouse.backends._NAME`.
        title: what users call it.
        instructions: instruction set extensions that the function needs.
        fix: how a network is opened without it.
    """

    name: str
    title: str
    instructions: tuple[str, ...]
    fix: str

    def missing_reason(self, instructions: Collection[str]) -> str:
        """Return why the function cannot run on a processor with these extensions; "" where it can."""
        missing = [name for name in self.instructions if name not in instructions]
        if missing:
            return f"{self.title} needs {' and '.join(missing)}, which this processor lacks"
        if find_spec(self._module) is None:
            return f"{self.title} was not compiled: install a C compiler, then reinstall stillhouse"
        return ""

    def load(self) -> Any:
        """Return the function. Its threads run on the processors that the first caller may use.

        So the first call must come before a runtime pins its threads.

        Raises:
            RuntimeMissing: the processor or the installation lacks the function.
        """
        return _load(self)

    @property
    def _module(self) -> str:
        return f"stillhouse.backends._{self.name}"


@cache
def _load(function: CompiledFunction) -> Any:
    if reason := function.missing_reason(processor_flags()):
        raise RuntimeMissing(reason, fix=function.fix)
    specification = find_spec(function._module)
    assert specification and specification.origin
    library = ctypes.CDLL(specification.origin)
    getattr(library, f"{function.name}_setup")()
    return getattr(library, function.name)
