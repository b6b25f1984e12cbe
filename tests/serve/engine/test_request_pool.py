"""The line of a tier: tags of start-time fair queueing."""

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.serve.engine.request_pool import FairQueue

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10.0)), min_size=1, max_size=40)


@given(EVENTS)
def test_a_key_stands_behind_its_own_work_and_nobody_elses(events: list[tuple[str, float]]) -> None:
    line = FairQueue()
    asked: dict[str, float] = {}
    for key, seconds in events:
        tag = line.assign_tag(key, seconds)
        assert abs(tag - asked.get(key, 0.0)) < 1e-9 * (1 + tag)
        asked[key] = tag + seconds


@given(EVENTS, EVENTS)
def test_whoever_comes_later_is_not_put_before_what_was_picked(
    before: list[tuple[str, float]], after: list[tuple[str, float]]
) -> None:
    line = FairQueue()
    tags = [line.assign_tag(key, seconds) for key, seconds in before]
    line.advance(max(tags))
    assert all(line.assign_tag(key, seconds) >= max(tags) for key, seconds in after)


@given(EVENTS)
def test_keys_without_work_in_line_are_forgotten(events: list[tuple[str, float]]) -> None:
    line = FairQueue()
    for key, seconds in events:
        line.advance(line.assign_tag(key, seconds))
    line.advance(1e9)
    line.assign_tag("new", 1.0)
    assert set(line.finish_tags) == {"new"}
