import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.backends.registry import open_runner
from stillhouse.core import ImageRequest
from stillhouse.errors import BackendFailed, InvalidRequest, PipelineError, RuntimeMissing, TamperedFile
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.tokenizers import PromptTruncated
from tests.conftest import NEGATIVE, PROMPT, SIZE, Checkpoint, Opened, sample_picture

QUICK: dict[str, Any] = {"steps": 3, "guidance": 3.0}


@pytest.fixture
def counted(imported: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pipeline, list[str]]]:
    """A pipeline, and the name of each network at each opening and run."""
    seen: list[str] = []

    def open_counted(graph: Path, *rest: Any) -> Any:
        runner, name = open_runner(graph, *rest), graph.relative_to(imported("sd1")).as_posix()
        seen.append(f"open {name}")

        def run(feeds: Any) -> Any:
            seen.append(f"run {name}")
            return runner(feeds)

        return run

    monkeypatch.setattr("stillhouse.pipelines.runners.open_runner", open_counted)
    yield Pipeline(imported("sd1"), threads=1), seen


def finished(pipeline: Pipeline, *drafts: ImageTrajectory) -> list[NDArray[np.uint8]]:
    """Advance all of them together, each until it is done."""
    while waiting := [draft for draft in drafts if not draft.is_done]:
        pipeline.advance(waiting)
    return [pipeline.finish(draft).image for draft in drafts]


def test_generate(opened: Opened) -> None:
    result = opened("sd1").generate(PROMPT, seed=7, **QUICK)
    assert result.image.shape == (SIZE, SIZE, 3) and result.image.dtype == np.uint8
    assert result.image.std() > 10
    assert result.request.seed == 7 and result.request.sampler == "ddim" and result.request.width == SIZE
    assert result.seconds > 0


def test_what_decides_a_picture(opened: Opened) -> None:
    pipeline = opened("sd1")
    first = pipeline.generate(PROMPT, **QUICK).image
    assert np.array_equal(first, pipeline.generate(PROMPT, **QUICK).image)
    for change in ({"seed": 1}, {"negative_prompt": NEGATIVE}, {"guidance": 5.0}, {"steps": 4}, {"sampler": "ddpm"}):
        assert not np.array_equal(first, pipeline.generate(PROMPT, **QUICK | change).image)
    assert not np.array_equal(first, pipeline.generate(NEGATIVE, **QUICK).image)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_picture_does_not_depend_on_its_batch(opened: Opened, kind: str) -> None:
    pipeline = opened(kind)
    requests = [
        ImageRequest(PROMPT, steps=3, guidance=3.0),
        ImageRequest(NEGATIVE, steps=5, guidance=1.0, sampler="euler_ancestral", seed=4),
        ImageRequest(PROMPT, steps=2, guidance=7.0, sampler="heun", negative_prompt=NEGATIVE),
        ImageRequest(NEGATIVE, steps=4, image=sample_picture(), strength=0.6),
    ]
    alone = [finished(pipeline, pipeline.start(request))[0] for request in requests]
    together = finished(pipeline, *map(pipeline.start, requests))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_what_is_not_masked_stays(opened: Opened) -> None:
    pipeline, image = opened("sd1"), sample_picture()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 255
    draft = pipeline.start(ImageRequest(PROMPT, image=image, mask=mask, **QUICK))
    while not draft.is_done:
        pipeline.advance([draft])
    known = pipeline.encode_image(image)
    half = known.shape[2] // 2
    np.testing.assert_allclose(draft.latents[:, :, :half], known[:, :, :half], atol=1e-5)
    assert np.abs(draft.latents[:, :, half:] - known[:, :, half:]).mean() > 0.1


def test_less_strength_stays_nearer(opened: Opened) -> None:
    pipeline, image = opened("sd1"), sample_picture()
    still = pipeline.decode(pipeline.encode_image(image)).astype(int)
    weak, strong = (
        pipeline.generate(PROMPT, image=image, strength=strength, steps=10).image for strength in (0.1, 0.9)
    )
    assert np.abs(weak - still).mean() < np.abs(strong - still).mean()


def test_networks_are_opened_when_needed_and_texts_read_once(counted: tuple[Pipeline, list[str]]) -> None:
    pipeline, seen = counted
    assert seen == []
    draft = pipeline.start(ImageRequest(PROMPT, **QUICK))
    text = "text_encoder/model.onnx"
    assert seen == [f"open {text}", f"run {text}", f"run {text}"]
    pipeline.generate(PROMPT, **QUICK)
    assert seen.count(f"run {text}") == 2 and seen.count("open unet/model.onnx") == 1
    assert "open vae/encoder.onnx" not in seen
    pipeline.advance([draft])
    assert seen.count("run unet/model.onnx") == 4


def test_rows_that_run_apart_draw_the_same(imported: Checkpoint, opened: Opened, tmp_path: Path) -> None:
    directory = tmp_path / "apart"
    shutil.copytree(imported("sd1"), directory)
    manifest = read_manifest(directory)
    unet = replace(manifest.components["denoiser"], backend="openvino", streams=2)
    write_manifest(directory, replace(manifest, components={**manifest.components, "denoiser": unet}))
    apart = Pipeline(directory, threads=1)
    requests = [ImageRequest(PROMPT, **QUICK), ImageRequest(NEGATIVE, steps=4, guidance=1.0)]
    together = finished(apart, *map(apart.start, requests))
    for request, image in zip(requests, together, strict=True):
        assert np.array_equal(image, finished(apart, apart.start(request))[0])
        plain = finished(opened("sd1"), opened("sd1").start(request))[0]
        assert np.abs(image.astype(int) - plain).max() <= 2
    wide = apart.generate(PROMPT, width=2 * SIZE, **QUICK).image
    assert wide.shape == (SIZE, 2 * SIZE, 3)


def test_one_row_without_guidance(opened: Opened) -> None:
    draft = opened("sd1").start(ImageRequest(PROMPT, guidance=1.0))
    assert draft.rows == 1 and list(draft.branches) == ["conditional"]


def test_a_long_prompt_warns_each_time(opened: Opened) -> None:
    for _ in range(2):
        with pytest.warns(PromptTruncated, match="'blue'"):
            opened("sd1").start(ImageRequest("red " * 75 + "blue", guidance=1.0))


def test_both_backends_draw_the_same(imported: Checkpoint, opened: Opened) -> None:
    other = Pipeline(imported("xl"), backend="openvino", precision="f32", threads=1)
    one, two = (pipeline.generate(PROMPT, **QUICK).image for pipeline in (opened("xl"), other))
    assert np.abs(one.astype(int) - two).max() <= 2
    runner = other.runner("denoiser", {})
    assert runner.backend == "openvino" and runner.precision == "f32"


def test_a_picture_that_is_not_done(opened: Opened) -> None:
    message = "the picture is not done: 0 of 3 evaluations have run; allowed: a picture that is done"
    with pytest.raises(InvalidRequest, match=message):
        opened("sd1").finish(opened("sd1").start(ImageRequest(PROMPT, **QUICK)))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("network", ["text_encoder", "encoder", "denoiser", "decoder"])
def test_what_is_no_number_is_no_picture(
    network: str, number: float, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision overflows in some networks; what came of it was a black picture, and no word."""
    pipeline, asked = opened("sd1"), {**QUICK, "image": sample_picture()}
    pipeline._encoded.cache_clear()
    run = pipeline.run
    if network == "denoiser" and np.isinf(number):
        pytest.skip("guidance makes NaN of it, and NumPy warns")

    def broken(name: str, feeds: Any) -> Any:
        answers = {output: array.copy() for output, array in run(name, feeds).items()}
        if name == network:
            next(iter(answers.values())).flat[7] = number
        return answers

    monkeypatch.setattr(pipeline, "run", broken)
    fix = "try `--precision f32`, another" if network == "denoiser" else "try another"
    with pytest.raises(BackendFailed, match=f"^{network} returned NaN or infinity, .*; {fix} `--backend`"):
        pipeline.generate(PROMPT, **asked)


def test_a_field_that_does_not_exist(opened: Opened) -> None:
    with pytest.raises(InvalidRequest, match="there is no request field 'stepps'.*did you mean 'steps'"):
        opened("sd1").generate(PROMPT, stepps=3)


@pytest.mark.parametrize("noise", [np.zeros((4, 8, 8), np.float32), np.zeros((4, 16, 16))])
def test_noise_of_another_shape(opened: Opened, noise: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"noise is .*; allowed: float32 \[4, 16, 16\]"):
        opened("sd1").start(ImageRequest(PROMPT), noise=noise)


@pytest.mark.parametrize(("kind", "message"), [("sd1", "mask without an image"), ("inpaint", "no image for")])
def test_images_that_are_missing(opened: Opened, kind: str, message: str) -> None:
    fields = {"mask": np.zeros((SIZE, SIZE), np.uint8)} if kind == "sd1" else {}
    with pytest.raises(InvalidRequest, match=message):
        opened(kind).generate(PROMPT, **fields)


def test_a_file_that_goes_missing(imported: Checkpoint, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(imported("sd1"), tmp_path / "copy"))
    pipeline = Pipeline(directory, threads=1)
    (directory / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"diffusion_pytorch_model.safetensors.* is missing"):
        pipeline.generate(PROMPT, **QUICK)
    with pytest.raises(TamperedFile, match="is missing"):
        Pipeline(directory)


def test_a_missing_runtime(imported: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeMissing, match="pip install openvino"):
        Pipeline(imported("sd1"), backend="openvino").generate(PROMPT, **QUICK)
