"""Checks of arguments. Each function raises InvalidRequest, with the given value and the allowed values, on failure."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

from stillhouse.errors import InvalidRequest

MAX_SHOWN = 80
"""Largest number of characters of a wrong name that are shown in an error message and compared with the allowed names.
The limit is needed, because the time of a comparison grows with the square of the length."""


def check_choice(label: str, value: object, allowed: Iterable[str]) -> None:
    """Raise InvalidRequest where `value` is none of the `allowed` names. The message suggests the most similar name.

    Args:
        label: what the name stands for, such as "sampler"; appears in the message.
        value: name to check; an object that is no str is refused.
        allowed: the allowed names.

    >>> check_choice("sampler", "dim", ("ddim", "heun"))
    Traceback (most recent call last):
    ...
    stillhouse.errors.InvalidRequest: there is no sampler 'dim'; allowed: ddim, heun; did you mean 'ddim'?
    """
    names = tuple(allowed)
    if value in names:
        return
    shown = value[:MAX_SHOWN] if isinstance(value, str) else value
    near = get_close_matches(str(shown).lower(), names, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else None
    raise InvalidRequest(f"there is no {label} {shown!r}", allowed=", ".join(names), fix=fix)


def check_integer(label: str, value: object, minimum: int, maximum: int) -> None:
    """Raise InvalidRequest where `value` is no integer from `minimum` to `maximum`; `label` names it in the message."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not minimum <= int(value) <= maximum:
        raise InvalidRequest(f"{label} is {value!r}", allowed=f"a whole number from {minimum} to {maximum}")


def check_number(label: str, value: object, minimum: float, maximum: float) -> None:
    """Raise InvalidRequest where `value` is no number from `minimum` to `maximum`; `label` names it in the message."""
    if not isinstance(value, int | float) or not minimum <= value <= maximum:
        raise InvalidRequest(f"{label} is {value!r}", allowed=f"a number from {minimum:g} to {maximum:g}")
