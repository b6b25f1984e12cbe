"""Seconds of the calls of a function."""

from collections.abc import Callable
from time import perf_counter
from typing import Generic, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Timed(Generic[Parameters, Result]):
    """A function that keeps the seconds of its calls.

    >>> double = Timed(lambda x: 2 * x)
    >>> double(3), len(double.take())
    (6, 1)
    """

    def __init__(self, function: Callable[Parameters, Result]) -> None:
        self._function = function
        self._seconds: list[float] = []

    def __call__(self, *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        """Call the function."""
        began = perf_counter()
        result = self._function(*arguments, **options)
        self._seconds.append(perf_counter() - began)
        return result

    def take(self) -> tuple[float, ...]:
        """Return the seconds of all calls since the last call of this method."""
        seconds, self._seconds = tuple(self._seconds), []
        return seconds
