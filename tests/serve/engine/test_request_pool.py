"""Start-time fair queueing: start tags."""

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.serve.engine.request_pool import FairQueue

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10.0)), min_size=1, max_size=40)


@given(EVENTS)
def test_key_queues_behind_its_own_work_only(events: list[tuple[str, float]]) -> None:
    line = FairQueue()
    jobs: dict[str, float] = {}
    for key, seconds in events:
        tag = line.assign_tag(key, seconds)
        assert abs(tag - jobs.get(key, 0.0)) < 1e-9 * (1 + tag)
        jobs[key] = tag + seconds


@given(EVENTS, EVENTS)
def test_later_key_starts_at_the_virtual_time(before: list[tuple[str, float]], after: list[tuple[str, float]]) -> None:
    line = FairQueue()
    tags = [line.assign_tag(key, seconds) for key, seconds in before]
    line.advance(max(tags))
    assert all(line.assign_tag(key, seconds) >= max(tags) for key, seconds in after)


@given(EVENTS)
def test_keys_without_queued_work_are_dropped(events: list[tuple[str, float]]) -> None:
    line = FairQueue()
    for key, seconds in events:
        line.advance(line.assign_tag(key, seconds))
    line.advance(1e9)
    line.assign_tag("new", 1.0)
    assert set(line.finish_tags) == {"new"}
