"""Latent datasets: encoding, sharding, resumption and random batches."""

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
from stillhouse.images.files import write_png
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import is_held_out


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


def write_latents(
    pipeline: Pipeline, samples: Callable[[int], Iterable[LatentSample]], folder: Path, *rest: Any, **options: Any
) -> bool:
    return write_shards(samples, partial(encode_samples, pipeline), folder, *rest, **options)


def no_samples() -> Iterator[LatentSample]:
    raise AssertionError("complete datasets are not encoded again")
    yield


def test_captions_of_scenes_are_not_held_out(pipeline: Pipeline) -> None:
    first, second = (list(shapes_samples(pipeline, 5, seed=3)) for _ in range(2))
    assert len(first) == 5 and all(sample.latents.shape == (4, 16, 16) for sample in first)
    assert not any(is_held_out(text) for sample in first for text in sample.captions)
    assert all(
        one.captions == other.captions and np.array_equal(one.latents, other.latents)
        for one, other in zip(first, second, strict=True)
    )


def test_batches_are_decided_by_the_generator_and_equal_after_loading(pipeline: Pipeline, tmp_path: Path) -> None:
    samples = list(shapes_samples(pipeline, 6, seed=1))
    assert write_latents(pipeline, lambda start: samples[start:], tmp_path / "deep" / "latents")
    assert write_latents(pipeline, lambda start: no_samples(), tmp_path / "deep" / "latents")
    made, again = (wait_for_latents(tmp_path / "deep" / "latents") for _ in range(2))
    one, other = (dataset.batch(np.random.default_rng(5), 16) for dataset in (made, again))
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.cond["encoder_hidden_states"], other.cond["encoder_hidden_states"])
    for latents, states in zip(one.latents, one.cond["encoder_hidden_states"], strict=True):
        (sample,) = [
            sample for sample in samples if torch.equal(torch.from_numpy(sample.latents).half().float(), latents)
        ]
        texts = [encode_caption(pipeline, text)["encoder_hidden_states"].float() for text in sample.captions]
        assert any(torch.equal(states, text) for text in texts)


def test_negative_inputs_are_those_of_the_negative_prompt(pipeline: Pipeline, tmp_path: Path) -> None:
    write_latents(pipeline, lambda start: shapes_samples(pipeline, 1, seed=1), tmp_path / "latents")
    dataset = wait_for_latents(tmp_path / "latents")
    states = dataset.negative_inputs(3)["encoder_hidden_states"]
    expected = torch.from_numpy(np.array(pipeline.encode_prompt("")["encoder_hidden_states"])).half().float()
    assert states.shape[0] == 3 and all(torch.equal(row, expected) for row in states)


def test_pictures_of_a_folder_are_cropped_and_skipped_ones_reported(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 32:96] = 200
    for name in ("wide", "silent"):
        write_png(tmp_path / f"{name}.png", picture)
    (tmp_path / "wide.txt").write_text("a grey square")
    skipped: list[SkippedImage] = []
    (sample,) = folder_samples(pipeline, tmp_path, 9, skipped.append)
    assert sample.captions == ("a grey square",)
    np.testing.assert_array_equal(sample.latents, pipeline.encode_image(picture[:, 32:96]))
    assert [image.name for image in skipped] == ["silent.png"]


def test_the_teacher_generates_samples_from_prompts(pipeline: Pipeline) -> None:
    samples = list(generated_samples(pipeline, ["a red circle", "a blue square"], 3, seed=10))
    assert [sample.captions for sample in samples] == [("a red circle",), ("a blue square",), ("a red circle",)]
    alone = pipeline.generate("a blue square", seed=11).image
    np.testing.assert_array_equal(pipeline.decode(samples[1].latents), alone)


def test_an_empty_dataset_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the dataset has no samples"):
        write_latents(pipeline, lambda start: [], tmp_path / "latents")
    assert not list(tmp_path.iterdir())


def test_pictures_of_the_right_size_are_returned_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert resize_and_crop(picture, 6, 8) is picture


def test_an_interrupted_run_loses_the_last_shard_and_ends_with_equal_data(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 2)

    def until(stop: int, start: int) -> Iterator[LatentSample]:
        for number, sample in enumerate(shapes_samples(pipeline, 7, seed=2, start=start), start):
            if number == stop:
                raise KeyboardInterrupt
            yield sample

    write_latents(pipeline, lambda start: shapes_samples(pipeline, 7, seed=2, start=start), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write_latents(pipeline, lambda start: until(5, start), tmp_path / "parts")
    starts: list[int] = []
    progress: list[int] = []

    def samples(start: int) -> Iterator[LatentSample]:
        starts.append(start)
        return shapes_samples(pipeline, 7, seed=2, start=start)

    assert write_latents(pipeline, samples, tmp_path / "parts", progress.append)
    assert starts == [4] and progress == [5, 6, 7]
    whole, again = wait_for_latents(tmp_path / "whole"), wait_for_latents(tmp_path / "parts")
    assert torch.equal(whole.latents, again.latents) and torch.equal(whole.caption_rows, again.caption_rows)
    one, other = (dataset.batch(np.random.default_rng(1), 9) for dataset in (whole, again))
    assert torch.equal(one.cond["encoder_hidden_states"], other.cond["encoder_hidden_states"])


def test_a_passed_deadline_encodes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    assert not write_latents(pipeline, lambda start: no_samples(), tmp_path / "latents", deadline=0.0)
