"""The job store: an accepted job is there after anything, ends once, and is forgotten in time."""

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


def test_a_job_is_read_back_as_it_was_asked_for_by_another_server(store: JobStore) -> None:
    store.add("one", "key", "free", ASKED, "png")
    again = JobStore(connect(store.directory), store.directory)
    (record,) = again.list_queued(10)
    assert fields(again.load_request(record)) == fields(ASKED)
    again.connection.close()


def test_images_are_kept_until_the_end_and_no_longer(store: JobStore) -> None:
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


def test_a_job_has_one_end(store: JobStore) -> None:
    record = store.add("one", "key", "free", ASKED, "png")
    assert store.finish("one", "completed", b"picture", result={"seed": 7})
    assert not store.finish("one", "failed", error="late")
    found = store.get("one")
    assert found and (found.state, found.error, found.result, found.bytes) == ("completed", "", {"seed": 7}, 7)
    assert store.image_path(record).read_bytes() == b"picture"
    assert not store.finish("none", "completed")


def test_the_same_job_asked_for_twice_is_one_job(store: JobStore) -> None:
    first = store.add("one", "key", "free", ASKED, "png")
    store.finish("one", "completed", b"picture")
    again = store.add("one", "key", "free", ASKED, "png")
    assert (again.state, again.created) == ("completed", first.created)
    assert not store.list_queued(10)


def test_the_first_of_every_key_goes_before_the_second_of_any(store: JobStore) -> None:
    for name, key in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")):
        store.add(name, key, "free", ASKED, "png")
    assert [record.id for record in store.list_queued(10)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [record.id for record in store.list_queued(2, ["a1", "c1"])] == ["b1", "a2"]


def test_a_key_sees_its_own_the_latest_first(store: JobStore) -> None:
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        store.add(name, key, "free", ASKED, "png")
    assert [record.id for record in store.list("a")] == ["a2", "a1"]
    assert [record.id for record in store.list(None, 2)] == ["a2", "b1"]
    latest = store.list("a")[0]
    assert [record.id for record in store.list("a", before=latest.created)] == ["a1"]


def test_only_so_many_wait(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "MAX_QUEUED", 1)
    store.add("one", "key", "free", ASKED, "png")
    with pytest.raises(Refused) as refused:
        store.add("two", "key", "free", ASKED, "png")
    assert refused.value.reason == "jobs"
    store.finish("one", "failed", error="no")
    store.add("two", "key", "free", ASKED, "png")


def test_what_ended_is_forgotten_when_it_is_old_or_there_is_too_much_of_it(store: JobStore) -> None:
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


def test_asking_twice_with_another_image_changes_nothing(store: JobStore) -> None:
    first, second = (np.full((64, 64, 3), level, np.uint8) for level in (10, 200))
    store.add("one", "key", "free", ImageRequest("", image=first), "png")
    record = store.add("one", "key", "free", ImageRequest("", image=second), "png")
    kept = store.load_request(record).image
    assert kept is not None
    np.testing.assert_array_equal(kept, first)
    store.finish("one", "completed", b"picture")
    store.add("one", "key", "free", ImageRequest("", image=second), "png")
    assert not list((store.directory / "inputs").iterdir())


def test_a_key_may_not_fill_the_queue_of_all(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "MAX_QUEUED_PER_KEY", 2)
    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("one", "two"):
        store.add(name, "greedy", "free", ASKED, "png")
    with pytest.raises(Refused, match="2 jobs of key greedy are queued"):
        store.add("three", "greedy", "free", ImageRequest("", image=image), "png")
    assert not list(store.directory.rglob("three*"))
    assert store.add("one", "greedy", "free", ASKED, "png").id == "one"
    store.add("four", "modest", "free", ASKED, "png")


def test_files_that_a_killed_server_left_are_swept_and_no_others(store: JobStore) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    store.add("waits", "key", "free", ImageRequest("", image=image), "png")
    store.add("drawn", "key", "free", ASKED, "png")
    store.finish("drawn", "completed", b"picture")
    kept = {path for path in store.directory.rglob("*") if path.is_file() and path.parent != store.directory}
    for name in ("inputs/gone.image.png", "images/gone.png", "images/.half.png.part", "inputs/drawn.image.png"):
        (store.directory / name).write_bytes(b"left")
    assert store.delete_orphans() == 4 and store.delete_orphans() == 0
    assert {path for path in store.directory.rglob("*") if path.is_file() and path.parent != store.directory} == kept


def test_what_the_disk_refuses_is_not_accepted_and_leaves_nothing(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    known = job_store._write_atomic

    def write(path: Path, content: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        known(path, content)

    monkeypatch.setattr(job_store, "_write_atomic", write)
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    with pytest.raises(OSError, match="No space left"):
        store.add("one", "key", "free", ImageRequest("", image=image, mask=mask), "png")
    assert store.get("one") is None and not list((store.directory / "inputs").iterdir())
