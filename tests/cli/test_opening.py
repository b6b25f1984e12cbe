"""Cache of compiled networks: small networks are cached, large ones are not, and a corrupt cache is rebuilt."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.cli import main
from stillhouse.cli.opening import MAX_CACHED_WEIGHTS, open_pipeline
from stillhouse.images.files import read_picture
from tests.cli.conftest import FakePipeline

ENGINE = Namespace(backend=None, precision=None, threads=None, verify=False)


@pytest.mark.parametrize(("size", "cached"), [(MAX_CACHED_WEIGHTS, True), (MAX_CACHED_WEIGHTS + 1, False)])
def test_only_small_networks_are_kept(here: Path, fake: FakePipeline, size: int, cached: bool) -> None:
    (here / "fake" / "unet").mkdir(parents=True)
    with (here / "fake" / "unet" / "weights.safetensors").open("wb") as file:
        file.truncate(size)
    open_pipeline("fake", ENGINE)
    assert (fake.opened["cache"] is not None) == cached


def test_a_spoilt_cache_is_made_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))

    def generated() -> np.ndarray:
        assert main(["generate", "a red circle", "--steps", "2", "--out", "one.png"]) == 0
        return read_picture(here / "one.png")

    fresh = generated()
    cached = [path for path in (here / "cache").rglob("*") if path.is_file()]
    assert cached
    for spoil in (lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"nonsense" * 100):
        for path in cached:
            whole = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(spoil(whole))
        np.testing.assert_array_equal(generated(), fresh)
    np.testing.assert_array_equal(generated(), fresh)
