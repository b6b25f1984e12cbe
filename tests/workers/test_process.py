"""Worker processes: replies within limits, and a sentence for every way to die."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.workers import process as process_module
from stillhouse.workers.process import Backoff, MemoryLimit, WorkerError, WorkerProcess

ROOT = Path(__file__).parents[2]
LIMIT = 60.0


def make_process(folder: Path, **options: Any) -> WorkerProcess[str, Any]:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    environment.update(options.pop("environment", {}))
    log = folder / "log.txt"
    return WorkerProcess(
        "tests.workers.echo", str | int, working_directory=folder, log_file=log, environment=environment, **options
    )


@pytest.fixture
def process(tmp_path: Path) -> Iterator[WorkerProcess[str, Any]]:
    worker = make_process(tmp_path, environment={"COLOUR": "red"})
    worker.start()
    yield worker
    worker.kill()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_replies_with_its_own_environment_and_group(process: WorkerProcess[str, Any]) -> None:
    assert process.request("hello", "greeting", LIMIT) == "hello"
    assert process.request("environment COLOUR", "environment", LIMIT) == "red"
    assert process.request("group", "group", LIMIT) == process.pid != os.getpgid(0)
    assert process.is_alive


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("exit 3", "its process ended with exit code 3: the last words"),
        ("crash", "its process was ended by SIGSEGV"),
        ("hang", "hang took more than 1 s and was ended; set a longer timeout"),
    ],
)
def test_every_way_to_die_has_its_sentence(message: str, reason: str, process: WorkerProcess[str, Any]) -> None:
    assert process.request("hello", "greeting", LIMIT) == "hello"
    with pytest.raises(WorkerError) as error:
        process.request(message, message, 1.0)
    assert str(error.value) == reason
    assert process.wait(LIMIT) is not None and not process.is_alive
    with pytest.raises(WorkerError, match="its process"):
        process.request("hello", "greeting", LIMIT)


def test_a_process_that_closes_its_channel_and_goes_on_is_killed(
    process: WorkerProcess[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_EXIT_SECONDS", 0.2)
    with pytest.raises(WorkerError, match="SIGKILL"):
        process.request("disconnect", "disconnect", LIMIT)
    assert not process.is_alive


def test_a_process_is_killed_with_those_that_it_started(process: WorkerProcess[str, Any]) -> None:
    child = process.request("child", "child", LIMIT)
    assert is_running(child)
    process.kill()
    until = time.monotonic() + LIMIT
    while is_running(child):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not process.is_alive


def test_memory_counts_together_with_that_of_other_processes(tmp_path: Path) -> None:
    usage: dict[int, int] = {}
    other = make_process(tmp_path, memory=MemoryLimit(lambda pid: 3 << 30))
    worker = make_process(tmp_path, memory=MemoryLimit(lambda pid: usage[pid], 5 << 30, (other,)))
    other.start()
    worker.start()
    try:
        usage[worker.pid] = 2 << 30
        assert worker.request("hello", "greeting", LIMIT) == "hello"
        usage[worker.pid] = 1 << 30
        assert worker.request("hello", "greeting", LIMIT) == "hello"
        assert (worker.observed_peak, worker.memory_bytes, other.memory_bytes) == (2 << 30, 1 << 30, 3 << 30)
        usage[worker.pid] = (2 << 30) + 1
        with pytest.raises(
            WorkerError, match=r"took 2\.0 GiB of memory beside 3\.0 GiB .* more than the 5\.0 GiB allowed"
        ):
            worker.request("hello", "greeting", LIMIT)
        assert not worker.is_alive and worker.memory_bytes == 0 and other.is_alive
    finally:
        worker.kill()
        other.kill()


def test_a_process_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    worker = WorkerProcess[str, Any]("tests.workers.echo", str, working_directory=tmp_path / "missing")
    with pytest.raises(WorkerError, match="could not be started: No such file or directory"):
        worker.start()
    worker.kill()
    assert not worker.is_alive


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys; from stillhouse.workers.process import WorkerProcess; "
        "worker = WorkerProcess('tests.workers.echo', str); worker.start(); "
        "worker.request('hello', 'hello', 60); print(worker.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    parent = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    until = time.monotonic() + LIMIT
    while is_running(int(parent.stdout)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_delays_grow_until_a_start_succeeds() -> None:
    backoff = Backoff(0.25, 1.0)
    assert [backoff.next_delay() for _ in range(5)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_delay() == 0.0
