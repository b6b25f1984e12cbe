"""Tiles join without a seam, and as diffusers joins them wherever both lay them the same."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.pipelines.tiled_decode import OVERLAP, decode_tiled, tile_starts


def smooth(channels: int, height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width]
    return np.stack([np.sin(y / 5 + c) + np.cos(x / 7 - c) for c in range(channels)]).astype(np.float32)


def enlarged(latents: Array, downscale: int = 1) -> Array:
    return latents.repeat(downscale, axis=1).repeat(downscale, axis=2)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.integers(2, 40),
    downscale=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=150, deadline=None)
def test_a_decoder_that_looks_at_single_latents_cannot_tell(height: int, width: int, tile: int, downscale: int) -> None:
    """The weights of all tiles sum to 1 at every pixel: rounding in float32 is all that is left."""
    latents, seen = smooth(2, height, width), []

    def decode(part: Array) -> Array:
        seen.append(part.shape)
        return enlarged(part, downscale)

    joined = decode_tiled(decode, latents, tile, downscale)
    np.testing.assert_allclose(joined, enlarged(latents, downscale), atol=2e-6)
    assert joined.dtype == np.float32
    assert set(seen) == {(2, min(tile, height), min(tile, width))}


@given(length=st.integers(1, 500), tile=st.integers(2, 100))
def test_tiles_reach_from_end_to_end_and_overlap(length: int, tile: int) -> None:
    begins = tile_starts(length, tile)
    assert begins[0] == 0 and begins[-1] == max(length - tile, 0)
    strides = np.diff(begins)
    assert all(1 <= stride <= max(int(tile * (1 - OVERLAP)), 1) for stride in strides)
    if len(strides):
        assert strides.max() - strides.min() <= 1
        assert len(strides) == -((tile - length) // max(int(tile * (1 - OVERLAP)), 1))


def test_one_tile_passes_linearly_into_the_next() -> None:
    """Tiles that answer with their own number, 0 and 1: over the overlap of 4 the second rises by quarters."""
    numbers = iter([0.0, 1.0])
    joined = decode_tiled(
        lambda part: np.full((1, *part.shape[1:]), next(numbers), np.float32), smooth(1, 1, 28), 16, 1
    )
    np.testing.assert_allclose(joined[0, 0, 12:16], [0, 0.25, 0.5, 0.75])
    assert not joined[0, 0, :12].any() and joined[0, 0, 16:].all()


def test_an_edge_of_a_tile_is_never_seen_where_the_other_tile_has_more_around_it() -> None:
    """Where tiles overlap by more than they blend, the blend lies in the middle."""
    numbers = iter([0.0, 1.0])
    joined = decode_tiled(
        lambda part: np.full((1, *part.shape[1:]), next(numbers), np.float32), smooth(1, 1, 22), 16, 1
    )
    assert not joined[0, 0, :9].any() and joined[0, 0, 13:].all()


@pytest.fixture(scope="module")
def vae() -> Any:
    torch = import_module("torch")
    torch.manual_seed(0)
    network = import_module("tests.checkpoints").vae().eval()
    network.enable_tiling()
    return network


def both(vae: Any, latents: Array, tile: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The signal by diffusers' tiled_decode, and by ours."""
    torch = import_module("torch")
    vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor = tile, 4 * tile, OVERLAP
    with torch.inference_mode():
        theirs = vae.tiled_decode(torch.from_numpy(latents)[None]).sample[0].numpy()

        def decode(part: Array) -> Array:
            signal: Array = vae.decoder(vae.post_quant_conv(torch.from_numpy(part)[None]))[0].numpy()
            return signal

        return theirs, decode_tiled(decode, latents, tile, 4)


def test_a_row_of_tiles_is_diffusers(vae: Any) -> None:
    """8 latents a tile, 6 from one to the next, 20 = 8 + 2 * 6: both lay the same three tiles, up to float rounding.

    diffusers starts one more at 18, and a row at 6, of 2 latents that were decoded already: these ends are left out.
    """
    theirs, ours = both(vae, smooth(4, 8, 20), 8)
    np.testing.assert_allclose(ours[:, :24, : 4 * 18], theirs[:, :24, : 4 * 18], atol=2e-6)
    assert np.abs(ours).max() > 0.1


def test_in_two_directions_only_the_corners_differ(vae: Any) -> None:
    """Where four tiles meet, diffusers blends rows that it has blended already; nowhere else."""
    theirs, ours = both(vae, smooth(4, 20, 20), 8)
    differs = np.abs(ours - theirs).max(axis=0)[:72, :72] > 2e-6
    pixels = np.arange(72)
    crossing = (pixels % 24 < 8) & (pixels >= 24)
    assert differs.any() and not differs[~np.logical_and.outer(crossing, crossing)].any()


def test_tiles_are_nearer_to_the_whole_than_diffusers_are(vae: Any) -> None:
    """Where the stride does not fit, diffusers ends with slivers that see nothing around them."""
    torch = import_module("torch")
    latents = smooth(4, 19, 19)
    theirs, ours = both(vae, latents, 8)
    with torch.inference_mode():
        whole = vae.decoder(vae.post_quant_conv(torch.from_numpy(latents)[None]))[0].numpy()
    assert theirs.shape == ours.shape == whole.shape
    assert np.square(ours - whole).mean() < np.square(theirs - whole).mean()


def test_diffusers_needs_a_tile_that_divides_by_four(vae: Any) -> None:
    """With 6 latents it steps by 4 and keeps the pixels of 4.5; ours joins them all the same."""
    theirs, ours = both(vae, smooth(4, 14, 14), 6)
    assert ours.shape == (3, 56, 56)
    assert theirs.shape != ours.shape
