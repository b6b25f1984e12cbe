"""Refusals: each says what was given, what is allowed, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

from stillhouse.errors import InvalidRequest

LONGEST = 80
"""Letters of a name that are told back, and looked for among the allowed ones: comparing takes their square."""


def check_choice(word: str, given: object, allowed: Iterable[str]) -> None:
    """Refuse a name that is not among the allowed ones, and offer the nearest of them.

    >>> check_choice("sampler", "dim", ("ddim", "heun"))
    Traceback (most recent call last):
    ...
    stillhouse.errors.InvalidRequest: there is no sampler 'dim'; allowed: ddim, heun; did you mean 'ddim'?
    """
    names = tuple(allowed)
    if given in names:
        return
    shown = given[:LONGEST] if isinstance(given, str) else given
    near = get_close_matches(str(shown).lower(), names, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else None
    raise InvalidRequest(f"there is no {word} {shown!r}", allowed=", ".join(names), fix=fix)


def check_whole(word: str, given: object, least: int, most: int) -> None:
    """Refuse what is not a whole number from least to most."""
    if isinstance(given, bool) or not isinstance(given, Integral) or not least <= int(given) <= most:
        raise InvalidRequest(f"{word} is {given!r}", allowed=f"a whole number from {least} to {most}")


def check_number(word: str, given: object, least: float, most: float) -> None:
    """Refuse a number that is not from least to most, and anything that is no number."""
    if not isinstance(given, int | float) or not least <= given <= most:
        raise InvalidRequest(f"{word} is {given!r}", allowed=f"a number from {least:g} to {most:g}")
