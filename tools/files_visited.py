"""Count the files that one image passes through: `python -m tools.files_visited cli|http|worker`.

A file counts if one of its functions is called between the request and the image, after everything was opened and
warmed up. Few files mean that few places have to be read to follow an image. Code that runs at import and the methods
that dataclasses and msgspec generate do not count.
"""

import sys
import threading
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from types import FrameType, MappingProxyType
from typing import Any

LIMITS: Mapping[str, int] = MappingProxyType({"cli": 36, "http": 22, "worker": 25})
"""Largest number of files in each mode."""
_PACKAGE = "/stillhouse/"
_START_SECONDS = 150.0
_DECODE_SECONDS = 30.0
_REQUESTS = 3
"""Number of recorded requests of the HTTP mode."""
_PROMPT = "a red circle"


@dataclass(slots=True)
class Visits:
    """Functions of the package that were called in each recording.

    Args:
        recordings: qualified names of the functions by file relative to the package, one mapping per recording.
        idle: the same for the functions that are called while there is no request.
        target: mapping that calls are recorded in; None: none are recorded.
    """

    recordings: list[defaultdict[str, set[str]]] = field(default_factory=list)
    idle: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    target: defaultdict[str, set[str]] | None = None

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a call; a profile function of `sys.setprofile`."""
        target = self.target
        if target is not None and event == "call" and _PACKAGE in frame.f_code.co_filename:
            file = frame.f_code.co_filename.rpartition(_PACKAGE)[2]
            target[file].add(frame.f_code.co_qualname)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the calls of all threads while the context is entered."""
        self.recordings.append(defaultdict(set))
        self.target = self.recordings[-1]
        try:
            yield
        finally:
            self.target = None

    def record_idle(self, seconds: float) -> None:
        """Record the calls of other threads for some seconds in which there is no request."""
        self.target = self.idle
        time.sleep(seconds)
        self.target = None

    @property
    def functions(self) -> dict[str, set[str]]:
        """Return the functions by file, for the files of every recording.

        Periodic tasks of the server are left out: they run during some recordings only, or, where each request takes
        long on a busy machine, also while there is no request.
        """
        visited = ({file for file in names if names[file] - self.idle[file]} for names in self.recordings)
        return {file: self.recordings[0][file] for file in sorted(set[str].intersection(*visited))}


def visit_cli(visits: Visits) -> None:
    """Record `stillhouse generate` after a first call, which loads modules."""
    from stillhouse.cli import main

    main(["generate", "warm", "--steps", "1", "--out", "warm.png"])
    with visits.record():
        main(["generate", _PROMPT, "--steps", "3", "--out", "image.png"])


def visit_http(visits: Visits) -> None:
    """Record the server's part of `POST /v1/images/generations`; the worker is another process.

    Raises:
        RuntimeError: the server is not ready in time, or the request fails.
    """
    from litestar.testing import TestClient

    from stillhouse.serve.api.app import make_app
    from stillhouse.serve.service import USAGE_SECONDS, make_service
    from stillhouse.serve.settings import ServerSettings

    service = make_service(ServerSettings(grpc_port=-1, data="data"))
    with TestClient(make_app(service)) as client:
        deadline = time.monotonic() + _START_SECONDS
        while client.get("/health/ready").status_code != 200:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready after {_START_SECONDS:g} s")
            time.sleep(0.1)
        client.post("/v1/images/generations", json={"prompt": "warm", "model": "free"})
        visits.record_idle(1.5 * USAGE_SECONDS)  # each frequent task runs once or more
        for _ in range(_REQUESTS):
            with visits.record():
                response = client.post("/v1/images/generations", json={"prompt": _PROMPT, "model": "free"})
            if response.status_code != 200:
                raise RuntimeError(f"the request failed: {response.text}")


def visit_worker(visits: Visits) -> None:
    """Record the worker's part, from the `Submit` with its resolved request to the `RequestOutput`.

    Raises:
        RuntimeError: the image is not decoded in time.
    """
    from stillhouse.core import ImageRequest
    from stillhouse.pipelines.load import load
    from stillhouse.serve.engine.cost import CostModel
    from stillhouse.serve.engine.engine import Engine
    from stillhouse.serve.engine.executor import PipelineCache, PipelineExecutor, measure_latency_curve
    from stillhouse.serve.engine.job import BatchKey, Tier, plan_steps
    from stillhouse.serve.engine.policy import POLICIES
    from stillhouse.serve.worker.decode_thread import DecodeThread
    from stillhouse.serve.worker.engine_process import make_job
    from stillhouse.serve.worker.messages import Submit

    pipelines = PipelineCache(lambda name: load("shapes-3"), ("free",), 1 << 33)
    pipeline = pipelines["free"]
    key = BatchKey("free", 64, 64)
    cost = CostModel({key: measure_latency_curve(pipeline, key, (1, 2), 1)})
    engine = Engine(PipelineExecutor(pipelines), POLICIES["slack"], cost, time.monotonic)
    decoded = threading.Event()
    decoder = DecodeThread(lambda output: decoded.set())
    decoder.start()
    resolved = pipeline.resolve(ImageRequest(_PROMPT, seed=1))
    submit = Submit("a", Tier("free"), "key", key, plan_steps(pipeline.manifest, resolved), resolved)
    with visits.record():
        engine.submit(make_job(submit, pipeline, time.monotonic()))
        while engine.jobs:
            for job in engine.step().finished:
                decoder.submit(job, pipeline)
        is_decoded = decoded.wait(_DECODE_SECONDS)
    decoder.close()
    if not is_decoded:
        raise RuntimeError(f"the image was not decoded after {_DECODE_SECONDS:g} s")


MODES: Mapping[str, Callable[[Visits], None]] = MappingProxyType(
    {"cli": visit_cli, "http": visit_http, "worker": visit_worker}
)
"""What is recorded, by mode."""


def count_visits(mode: str) -> Visits:
    """Return the visits of one image. Changes the process's profile function and works in a temporary directory."""
    visits = Visits()
    with TemporaryDirectory() as directory, chdir(directory):
        threading.setprofile(visits.profile)
        sys.setprofile(visits.profile)
        try:
            MODES[mode](visits)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return visits


def main(argv: Sequence[str] | None = None) -> int:
    """Print the files with their functions, and return 1 if there are more than the mode's limit, otherwise 0."""
    parser = ArgumentParser(prog="python -m tools.files_visited", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mode", choices=sorted(MODES), help="where the image is requested, or the worker's part alone")
    mode = parser.parse_args(argv).mode
    visits = count_visits(mode)
    for file, functions in visits.functions.items():
        print(f"{file}: {', '.join(sorted(functions))}")
    print(f"{len(visits.functions)} files; allowed: {LIMITS[mode]}")
    return 1 if len(visits.functions) > LIMITS[mode] else 0


if __name__ == "__main__":
    sys.exit(main())
