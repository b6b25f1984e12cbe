"""Job store: accepted jobs are durable, end once, and are deleted in time."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stillhouse.core import ImageRequest
from stillhouse.errors import Refused
from stillhouse.serve.store import job_store
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import JobStore

ASKED = ImageRequest("a red circle", seed=2**63 - 1, steps=3, guidance_interval=(0.2, 0.8))


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    connection = connect(tmp_path)
    yield JobStore(connection, tmp_path, FakeClock())
    connection.close()


def fields(request: ImageRequest) -> dict[str, object]:
    return {name: getattr(request, name) for name in ImageRequest.__dataclass_fields__}


def test_job_is_read_back_after_a_restart(store: JobStore) -> None:
    store.add("one", "key", "free", ASKED, "png")
    again = JobStore(connect(store.directory), store.directory)
    (record,) = again.list_queued(10)
    assert fields(again.load_request(record)) == fields(ASKED)
    again.connection.close()


def test_input_images_are_kept_until_the_job_ends(store: JobStore) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    mask = np.full((64, 64), 255, np.uint8)
    record = store.add("one", "key", "free", ImageRequest("", image=image, mask=mask), "png")
    request = store.load_request(record)
    assert request.image is not None and request.mask is not None
    np.testing.assert_array_equal(request.image, image)
    np.testing.assert_array_equal(request.mask, mask)
    assert len(list((store.directory / "inputs").iterdir())) == 2
    store.finish("one", "cancelled")
    assert not list((store.directory / "inputs").iterdir())


def test_job_ends_once(store: JobStore) -> None:
    record = store.add("one", "key", "free", ASKED, "png")
    assert store.finish("one", "completed", b"picture", result={"seed": 7})
    assert not store.finish("one", "failed", error="late")
    stored = store.get("one")
    assert stored and (stored.state, stored.error, stored.result, stored.bytes) == ("completed", "", {"seed": 7}, 7)
    assert store.image_path(record).read_bytes() == b"picture"
    assert not store.finish("none", "completed")


def test_adding_a_job_twice_is_idempotent(store: JobStore) -> None:
    first = store.add("one", "key", "free", ASKED, "png")
    store.finish("one", "completed", b"picture")
    again = store.add("one", "key", "free", ASKED, "png")
    assert (again.state, again.created) == ("completed", first.created)
    assert not store.list_queued(10)


def test_queued_jobs_are_listed_round_robin_by_key(store: JobStore) -> None:
    for name, key in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")):
        store.add(name, key, "free", ASKED, "png")
    assert [record.id for record in store.list_queued(10)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [record.id for record in store.list_queued(2, ["a1", "c1"])] == ["b1", "a2"]


def test_key_lists_its_own_jobs_newest_first(store: JobStore) -> None:
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        store.add(name, key, "free", ASKED, "png")
    assert [record.id for record in store.list("a")] == ["a2", "a1"]
    assert [record.id for record in store.list(None, 2)] == ["a2", "b1"]
    latest = store.list("a")[0]
    assert [record.id for record in store.list("a", before=latest.created)] == ["a1"]


def test_number_of_queued_jobs_is_bounded(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "MAX_QUEUED", 1)
    store.add("one", "key", "free", ASKED, "png")
    with pytest.raises(Refused) as refused:
        store.add("two", "key", "free", ASKED, "png")
    assert refused.value.reason == "jobs"
    store.finish("one", "failed", error="no")
    store.add("two", "key", "free", ASKED, "png")


def test_old_or_excess_jobs_are_deleted(store: JobStore) -> None:
    for number in range(4):
        store.add(f"{number}", "key", "free", ASKED, "png")
    for number in range(3):
        store.finish(f"{number}", "completed", b"x" * 100)
    assert store.delete_old(keep_seconds=1e9, keep_bytes=1000) == 0
    assert store.delete_old(keep_seconds=1e9, keep_bytes=250) == 1
    assert [record.id for record in store.list(None)] == ["3", "2", "1"]
    assert store.delete_old(keep_seconds=0.5, keep_bytes=1000) == 2
    assert [record.id for record in store.list(None)] == ["3"]
    assert not list((store.directory / "images").iterdir())


def test_adding_a_job_twice_keeps_the_first_image(store: JobStore) -> None:
    first, second = (np.full((64, 64, 3), level, np.uint8) for level in (10, 200))
    store.add("one", "key", "free", ImageRequest("", image=first), "png")
    record = store.add("one", "key", "free", ImageRequest("", image=second), "png")
    remaining = store.load_request(record).image
    assert remaining is not None
    np.testing.assert_array_equal(remaining, first)
    store.finish("one", "completed", b"picture")
    store.add("one", "key", "free", ImageRequest("", image=second), "png")
    assert not list((store.directory / "inputs").iterdir())


def test_queued_jobs_per_key_are_bounded(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "MAX_QUEUED_PER_KEY", 2)
    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("one", "two"):
        store.add(name, "greedy", "free", ASKED, "png")
    with pytest.raises(Refused, match="2 jobs of key greedy are queued"):
        store.add("three", "greedy", "free", ImageRequest("", image=image), "png")
    assert not list(store.directory.rglob("three*"))
    assert store.add("one", "greedy", "free", ASKED, "png").id == "one"
    store.add("four", "modest", "free", ASKED, "png")


def test_orphaned_files_are_deleted(store: JobStore) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    store.add("waits", "key", "free", ImageRequest("", image=image), "png")
    store.add("drawn", "key", "free", ASKED, "png")
    store.finish("drawn", "completed", b"picture")
    remaining = {path for path in store.directory.rglob("*") if path.is_file() and path.parent != store.directory}
    for name in ("inputs/gone.image.png", "images/gone.png", "images/.half.png.part", "inputs/drawn.image.png"):
        (store.directory / name).write_bytes(b"left")
    assert store.delete_orphans() == 4 and store.delete_orphans() == 0
    assert {
        path for path in store.directory.rglob("*") if path.is_file() and path.parent != store.directory
    } == remaining


def test_failed_write_stores_nothing(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def fsync(descriptor: int) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    with pytest.raises(OSError, match="No space left"):
        store.add("one", "key", "free", ImageRequest("", image=image, mask=mask), "png")
    assert store.get("one") is None and not list((store.directory / "inputs").iterdir())
