"""Fixtures of every room: checkpoints, pipelines made of them, a picture. torch is loaded by tests that ask for it."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

import stillhouse  # noqa: F401  # first: switches off the telemetry of the others
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.pipelines.pipeline import Pipeline
from tools.durations import DURATIONS, sort_by_duration

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by the hub's client when it is first imported
os.environ.setdefault("STILLHOUSE_NO_MEASURE", "1")  # embedded models run as their manifests say, on every machine

SIZE = 64
PROMPT, NEGATIVE = "a red circle left of a blue square", "a green triangle"

Checkpoint = Callable[[str], Path]
Opened = Callable[[str], Pipeline]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the files that take longest first, so that the processes of pytest-xdist end at about the same time."""
    if hasattr(config, "workerinput") and DURATIONS.is_file():
        sort_by_duration(items, json.loads(DURATIONS.read_text(encoding="utf-8")))


def pytest_collection_finish() -> None:
    """Exempt the imported libraries from garbage collection: each full collection reads their million objects."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Give the libraries back to the garbage collection: some of them report objects that outlive them."""
    gc.unfreeze()


def shared_directory(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a directory that all processes of this run of the tests share."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    directory.mkdir(exist_ok=True)
    return directory


def make_once(directory: Path, make: Callable[[Path], object]) -> Path:
    """Return a directory that the first process makes that needs it; the others wait for it.

    Args:
        directory: where it will be.
        make: makes it at the path that it takes, whose last part is the directory's name.
    """
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            unfinished = directory.parent / "unfinished" / directory.name
            unfinished.parent.mkdir(exist_ok=True)
            make(unfinished)
            unfinished.rename(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A diffusers directory by kind, written at the first call. Not to be changed."""
    root = shared_directory(tmp_path_factory, "checkpoints")

    def find(kind: str) -> Path:
        return make_once(root / kind, lambda path: import_module("tests.checkpoints").write_checkpoint(kind, path))

    return find


@pytest.fixture(scope="session")
def imported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A pipeline directory by kind, imported at the first call. Not to be changed."""
    root = shared_directory(tmp_path_factory, "pipelines")

    def find(kind: str) -> Path:
        return make_once(root / kind, lambda path: import_model(checkpoint(kind), path))

    return find


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A pipeline directory of the smallest networks by kind, named after its kind. Not to be changed.

    sd1 predicts epsilon, sd2 velocity, xl has two text encoders; sd21 is sd2 without zero SNR.
    """
    root = shared_directory(tmp_path_factory, "smallest")

    def make(directory: Path) -> None:
        checkpoints, kind = import_module("tests.checkpoints"), directory.name
        source = directory.with_name(f"{kind}-checkpoint")
        checkpoints.write_checkpoint("sd2" if kind == "sd21" else kind, source, checkpoints.SMALLEST)
        if kind == "sd21":  # as Stability published it
            config = source / "scheduler" / "scheduler_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": False}))
        import_model(source, directory, ImportOptions(kind))

    return lambda kind: make_once(root / kind, make)


@pytest.fixture(scope="session")
def opened(imported: Checkpoint) -> Opened:
    """An open pipeline by kind."""
    pipelines: dict[str, Pipeline] = {}

    def find(kind: str) -> Pipeline:
        if kind not in pipelines:
            pipelines[kind] = Pipeline(imported(kind), threads=1)
        return pipelines[kind]

    return find


def sample_picture(seed: int = 0, height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    """Smooth colours with sharp edges."""
    y, x = np.mgrid[:height, :width]
    levels = [128 + 100 * np.sin((seed + 1) * (x * a + y * b) / 9) for a, b in ((1, 0), (0, 1), (1, 1))]
    image = np.stack(levels, axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 20)
    return image


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """torch's number of threads belongs to the process: it is put back. Only tests that ask for it load torch."""
    torch = import_module("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
