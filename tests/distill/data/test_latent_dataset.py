"""Pairs: encoded once, as the pipeline that serves encodes, and drawn by the generator alone."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse import load
from stillhouse.distill.data import shards
from stillhouse.distill.data.image_folder import SkippedImage
from stillhouse.distill.data.latent_dataset import encode_caption, encode_samples, wait_for_latents
from stillhouse.distill.data.samples import (
    LatentSample,
    folder_samples,
    generated_samples,
    resize_and_crop,
    shapes_samples,
)
from stillhouse.distill.data.shards import write_shards
from stillhouse.errors import InvalidRequest
from stillhouse.images.png import write_png
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import is_held_out


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


def write_latents(
    pipeline: Pipeline, items: Callable[[int], Iterable[LatentSample]], folder: Path, *told: Any, **more: Any
) -> bool:
    return write_shards(items, partial(encode_samples, pipeline), folder, *told, **more)


def no_samples() -> Iterator[LatentSample]:
    raise AssertionError("what is kept is not made again")
    yield


def test_scenes_come_with_captions_that_training_may_see(pipeline: Pipeline) -> None:
    first, second = (list(shapes_samples(pipeline, 5, seed=3)) for _ in range(2))
    assert len(first) == 5 and all(item.latents.shape == (4, 16, 16) for item in first)
    assert not any(is_held_out(text) for item in first for text in item.captions)
    assert all(
        one.captions == other.captions and np.array_equal(one.latents, other.latents)
        for one, other in zip(first, second, strict=True)
    )


def test_batches_are_decided_by_the_generator_and_survive_the_file(pipeline: Pipeline, tmp_path: Path) -> None:
    items = list(shapes_samples(pipeline, 6, seed=1))
    assert write_latents(pipeline, lambda begin: items[begin:], tmp_path / "deep" / "pairs")
    assert write_latents(pipeline, lambda begin: no_samples(), tmp_path / "deep" / "pairs")
    made, again = (wait_for_latents(tmp_path / "deep" / "pairs") for _ in range(2))
    one, other = (pairs.batch(np.random.default_rng(5), 16) for pairs in (made, again))
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.cond["encoder_hidden_states"], other.cond["encoder_hidden_states"])
    for latents, states in zip(one.latents, one.cond["encoder_hidden_states"], strict=True):
        (item,) = [item for item in items if torch.equal(torch.from_numpy(item.latents).half().float(), latents)]
        said = [encode_caption(pipeline, text)["encoder_hidden_states"].float() for text in item.captions]
        assert any(torch.equal(states, text) for text in said)


def test_nothing_is_the_negative_prompt(pipeline: Pipeline, tmp_path: Path) -> None:
    write_latents(pipeline, lambda begin: shapes_samples(pipeline, 1, seed=1), tmp_path / "pairs")
    pairs = wait_for_latents(tmp_path / "pairs")
    states = pairs.negative_inputs(3)["encoder_hidden_states"]
    wanted = torch.from_numpy(np.array(pipeline.encode_prompt("")["encoder_hidden_states"])).half().float()
    assert states.shape[0] == 3 and all(torch.equal(row, wanted) for row in states)


def test_a_folder_is_cut_to_size_and_tells_what_it_skips(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 32:96] = 200
    for name in ("wide", "silent"):
        write_png(tmp_path / f"{name}.png", picture)
    (tmp_path / "wide.txt").write_text("a grey square")
    skipped: list[SkippedImage] = []
    (item,) = folder_samples(pipeline, tmp_path, 9, skipped.append)
    assert item.captions == ("a grey square",)
    np.testing.assert_array_equal(item.latents, pipeline.encode_image(picture[:, 32:96]))
    assert [one.name for one in skipped] == ["silent.png"]


def test_the_teacher_draws_for_whoever_has_no_pictures(pipeline: Pipeline) -> None:
    items = list(generated_samples(pipeline, ["a red circle", "a blue square"], 3, seed=10))
    assert [item.captions for item in items] == [("a red circle",), ("a blue square",), ("a red circle",)]
    alone = pipeline.generate("a blue square", seed=11).image
    np.testing.assert_array_equal(pipeline.decode(items[1].latents), alone)


def test_no_items_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to learn from"):
        write_latents(pipeline, lambda begin: [], tmp_path / "pairs")
    assert not list(tmp_path.iterdir())


def test_pictures_of_the_right_size_are_left_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert resize_and_crop(picture, 6, 8) is picture


def test_a_run_that_is_killed_loses_the_last_part_and_ends_with_the_same_pairs(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PART", 2)

    def until(stop: int, begin: int) -> Iterator[LatentSample]:
        for number, item in enumerate(shapes_samples(pipeline, 7, seed=2, start=begin), begin):
            if number == stop:
                raise KeyboardInterrupt
            yield item

    write_latents(pipeline, lambda begin: shapes_samples(pipeline, 7, seed=2, start=begin), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write_latents(pipeline, lambda begin: until(5, begin), tmp_path / "parts")
    begun: list[int] = []
    seen: list[int] = []

    def noted(begin: int) -> Iterator[LatentSample]:
        begun.append(begin)
        return shapes_samples(pipeline, 7, seed=2, start=begin)

    assert write_latents(pipeline, noted, tmp_path / "parts", seen.append)
    assert begun == [4] and seen == [5, 6, 7]
    whole, again = wait_for_latents(tmp_path / "whole"), wait_for_latents(tmp_path / "parts")
    assert torch.equal(whole.latents, again.latents) and torch.equal(whole.caption_rows, again.caption_rows)
    one, other = (pairs.batch(np.random.default_rng(1), 9) for pairs in (whole, again))
    assert torch.equal(one.cond["encoder_hidden_states"], other.cond["encoder_hidden_states"])


def test_no_time_encodes_nothing_and_says_so(pipeline: Pipeline, tmp_path: Path) -> None:
    assert not write_latents(pipeline, lambda begin: no_samples(), tmp_path / "pairs", deadline=0.0)
