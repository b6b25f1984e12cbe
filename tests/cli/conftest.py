"""A fake pipeline that generates flat images instantly, in place of `load`; requests are resolved as usual."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.cli import main
from stillhouse.core import ImageRequest, ImageResult, Picture
from stillhouse.diffusion import Schedule
from stillhouse.errors import UnknownModel
from stillhouse.pipelines.manifest import Defaults, Latent, Manifest, Sampling
from stillhouse.pipelines.resolve import Resolved, resolve

MANIFEST = Manifest(
    name="fake",
    family="stable-diffusion",
    components={},
    tokenizers={},
    sampling=Sampling(Schedule(zero_terminal_snr=True), "v_prediction", "trailing"),
    latent=Latent(4, 1.0, 0.0, 4),
    granularity=8,
    family_options={"in_channels": 4},
    defaults=Defaults(steps=3, guidance=2.0, sampler="ddim", width=64, height=64),
)


@dataclass(slots=True)
class FakeTrajectory:
    request: ImageRequest
    index: int = 0

    @property
    def evaluations(self) -> int:
        return self.request.steps or 0

    @property
    def is_done(self) -> bool:
        return self.index == self.evaluations

    @property
    def progress(self) -> float:
        return self.index / self.evaluations


class FakePipeline:
    """Pipeline whose images are the seed as a grey level.

    Args:
        opened: keyword arguments of `load`.
    """

    def __init__(self, **opened: Any) -> None:
        self.opened = opened
        self.manifest = MANIFEST
        self.advanced = 0
        self.interrupt_after: int | None = None

    def resolve(self, request: ImageRequest) -> Resolved:
        return resolve(self.manifest, request)

    def start(self, request: ImageRequest | Resolved) -> FakeTrajectory:
        full = (request if isinstance(request, Resolved) else self.resolve(request)).request
        if len(full.prompt) > 200:
            warnings.warn("this part was cut off: 'end'", UserWarning, stacklevel=2)
        return FakeTrajectory(full)

    def advance(self, trajectories: Sequence[FakeTrajectory]) -> None:
        for trajectory in trajectories:
            trajectory.index += 1
            self.advanced += 1
        if self.advanced == self.interrupt_after:
            raise KeyboardInterrupt

    def steps(self, trajectories: Sequence[FakeTrajectory]) -> Iterator[Sequence[FakeTrajectory]]:
        while moving := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            self.advance(moving)
            yield moving

    def synchronize(self) -> None:
        pass

    def finish(self, trajectory: FakeTrajectory) -> ImageResult:
        assert trajectory.is_done
        assert trajectory.request.width and trajectory.request.height
        level = trajectory.request.seed % 256
        image: Picture = np.full((trajectory.request.height, trajectory.request.width, 3), level, np.uint8)
        return ImageResult(image, trajectory.request, 0.25)

    def encode_image(self, picture: Picture) -> Picture:
        return picture

    def decode(self, latents: Picture) -> Picture:
        return latents


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    pipeline = FakePipeline()

    def load(name: str, **options: Any) -> FakePipeline:
        if name not in ("shapes", "shapes-3", "fake"):
            raise UnknownModel(f"there is no model {name!r}", allowed="shapes", fix="see stillhouse models")
        pipeline.opened = {"model": name, **options}
        return pipeline

    monkeypatch.setattr("stillhouse.cli.opening.find_pipeline", lambda name: Path(name))
    monkeypatch.setattr("stillhouse.cli.opening.load", load)
    return pipeline


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use a temporary cache directory instead of the user's."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail with exit code 2, and return its message.

    The message has several lines, and no file is written.
    """

    def run(*argv: str) -> str:
        before = sorted(here.rglob("*"))
        assert main(argv) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert "Traceback" not in output.err
        assert sorted(here.rglob("*")) == before
        return output.err

    return run
