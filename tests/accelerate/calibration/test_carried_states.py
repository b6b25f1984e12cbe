"""States of recurrent networks are matched with outputs by name, and carried from one set of inputs to the next."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.calibration.carried_states import Feeds, carry_states, match_states
from stillhouse.errors import BackendFailed


@pytest.mark.parametrize(
    ("states", "outputs", "matches"),
    [
        (["state"], ["output", "stateN"], {"state": "stateN"}),
        (["h", "c"], ["output", "hn", "cn"], {"h": "hn", "c": "cn"}),
        (["h0", "c0"], ["c_n", "h_n"], {"h0": "h_n", "c0": "c_n"}),
        (["h_in"], ["h_out"], {"h_in": "h_out"}),
        (["h", "c"], ["output", "hn"], {}),
        (["state"], ["state_out", "state_new"], {}),
        ([], ["output"], {}),
    ],
)
def test_states_and_outputs_differ_in_their_endings(
    states: Sequence[str], outputs: Sequence[str], matches: dict[str, str]
) -> None:
    assert match_states(states, outputs) == matches


@given(values=st.lists(st.integers(-99, 99), min_size=1, max_size=6), start=st.integers(-9, 9))
def test_a_network_that_adds_gets_running_sums(values: list[int], start: int) -> None:
    sets = [{"x": np.array([value]), "sum0": np.array([start], np.float32)} for value in values]
    calls: list[Feeds] = []

    def run(feeds: Feeds) -> Feeds:
        calls.append(feeds)
        return {"sumN": feeds["x"] + feeds["sum0"]}

    carried = carry_states(sets, {"sum0": "sumN"}, run)
    assert carried is not None
    assert [feeds["sum0"].item() for feeds in carried] == [start + sum(values[:place]) for place in range(len(values))]
    assert [feeds["x"].item() for feeds in carried] == values
    assert all(feeds["sum0"].dtype == np.float32 for feeds in carried)
    assert len(calls) == len(values) - 1, "what follows the last set is not needed"
    assert all(feeds["sum0"] == start for feeds in sets), "the sets themselves stay as they are"


def test_a_state_of_another_shape_is_not_carried() -> None:
    sets = [{"state": np.zeros((1, 2))}] * 2
    assert carry_states(sets, {"state": "stateN"}, lambda feeds: {"stateN": np.zeros((2, 2))}) is None


def test_a_network_that_fails_carries_nothing() -> None:
    def run(feeds: Feeds) -> Feeds:
        raise BackendFailed("onnxruntime could not run the graph")

    assert carry_states([{"state": np.zeros(2)}] * 2, {"state": "stateN"}, run) is None
