"""States of recurrent networks, taken from the network's own outputs, as a program does from one call to the next."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from stillhouse.errors import BackendFailed

Feeds: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[[Feeds], Mapping[str, NDArray[Any]]]
"""Runs a network: takes arrays by input name, and returns arrays by output name."""
_PLACE = r"[_.]?(in|out|input|output|prev|previous|new|next|init|initial|final|[0nt])$"
"""Endings of names that tell a state before a call from the state after the call."""


def match_states(states: Iterable[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return the output that holds the next value of each state of a recurrent network, by the state's input name.

    Names match where they differ in an ending only, such as `h0` and `hn`, or `state` and `stateN`.

    Args:
        states: names of the inputs that are states.
        outputs: names of all outputs.

    Returns:
        output by input; empty where a state has no match, or several.

    >>> match_states(["h0", "state"], ["y", "hn", "stateN"])
    {'h0': 'hn', 'state': 'stateN'}
    """
    matches: dict[str, str] = {}
    for state in states:
        found = [output for output in outputs if _stem(output) == _stem(state)]
        if len(found) != 1:
            return {}
        matches[state] = found[0]
    return matches


def carry_states(sets: Sequence[Feeds], matches: Mapping[str, str], run: Run) -> list[Feeds] | None:
    """Return sets of inputs in which each state is what the network returned for the set before; the first is kept.

    Args:
        sets: sets of inputs of a recurrent network, such as consecutive pieces of a sound.
        matches: output by input that is a state, from `match_states`.
        run: runs the network.

    Returns:
        the sets; None where the network cannot run on them, or returns a state of another shape than it takes.
    """
    carried = [dict(sets[0])]
    for feeds in sets[1:]:
        try:
            outputs = run(carried[-1])
        except BackendFailed:
            return None
        states = {name: outputs[output].astype(feeds[name].dtype) for name, output in matches.items()}
        if any(state.shape != feeds[name].shape for name, state in states.items()):
            return None
        carried.append({**feeds, **states})
    return carried


def _stem(name: str) -> str:
    return re.sub(_PLACE, "", name.lower())
