"""Where the U-Net runs on torch, pictures lie there, from their noise to their last evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillhouse.backends.kernels.guided_step import guided_step
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.torch_arrays import TorchArrays
from stillhouse.core import ImageRequest
from stillhouse.diffusion import NUMPY, InpaintBlend
from stillhouse.distill.data.latent_dataset import encode_caption, encode_negative_prompt
from stillhouse.errors import BackendFailed, InvalidRequest
from stillhouse.pipelines.manifest import StepCache, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from tests.conftest import NEGATIVE, PROMPT, SIZE, Checkpoint, sample_picture
from tests.pipelines.test_pipeline import finished

pytestmark = pytest.mark.usefixtures("torch_threads")

MASK = np.zeros((SIZE, SIZE), np.uint8)
MASK[: SIZE // 2] = 255
REQUESTS = (
    ImageRequest(PROMPT, steps=3, guidance=3.0),
    ImageRequest(PROMPT, negative_prompt=NEGATIVE, steps=4, guidance=2.0, sampler="dpmpp_2m", seed=3),
    ImageRequest(PROMPT, steps=3, guidance=1.0, sampler="euler_ancestral", seed=4),
    ImageRequest(PROMPT, steps=4, guidance=3.0, image=sample_picture(), strength=0.6),
    ImageRequest(PROMPT, steps=3, guidance=3.0, image=sample_picture(), strength=1.0, mask=MASK),
)


@pytest.fixture(scope="module")
def pipeline(imported: Checkpoint) -> Pipeline:
    return Pipeline(imported("sd1"), backend="torch", threads=1)


def test_everything_that_a_draft_holds_lies_with_the_network(pipeline: Pipeline) -> None:
    draft = pipeline.start(REQUESTS[-1])
    pipeline.advance([draft])
    (blend,) = draft.effects
    assert isinstance(blend, InpaintBlend)
    held = [draft.latents, draft.denoised, blend.clean, blend.mask, blend.noise]
    held += [tensor for branch in draft.branches.values() for tensor in branch.inputs.values()]
    assert len(held) == 7 and all(isinstance(tensor, torch.Tensor) for tensor in held)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_pictures_are_the_same_as_by_way_of_numpy(imported: Checkpoint, kind: str) -> None:
    """To the bit: the same sums, in the same order, in another place."""
    there, back = (Pipeline(imported(kind), backend="torch", threads=1) for _ in range(2))
    back.arrays = NUMPY
    drafts = [[pipeline.start(request) for request in REQUESTS] for pipeline in (there, back)]
    for one, other in zip(finished(there, *drafts[0]), finished(back, *drafts[1]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(drafts[0][0].latents, torch.Tensor) and isinstance(drafts[1][0].latents, np.ndarray)


def test_pictures_are_the_same_where_guidance_and_step_are_one_operation(imported: Checkpoint) -> None:
    """As on a GPU, on what the network left there; on a processor that operation is the kernel's reference."""
    fused, plain = (Pipeline(imported("sd1"), backend="torch", threads=1) for _ in range(2))
    fused.arrays = TorchArrays("cpu", guided_step)
    ours, theirs = (finished(one, *map(one.start, REQUESTS)) for one in (fused, plain))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_for_inpainting_sees_its_channels_there(imported: Checkpoint) -> None:
    there, back = (Pipeline(imported("inpaint"), backend="torch", threads=1) for _ in range(2))
    back.arrays = NUMPY
    ours, theirs = (finished(one, one.start(REQUESTS[-1]))[0] for one in (there, back))
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_seen_on_the_way_can_be_decoded(pipeline: Pipeline) -> None:
    draft = pipeline.start(REQUESTS[0])
    pipeline.advance([draft])
    pipeline.synchronize()
    assert draft.denoised is not None
    assert pipeline.decode(draft.denoised).shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(
        pipeline.decode(pipeline.arrays.to_numpy(draft.denoised)), pipeline.decode(draft.denoised)
    )


def test_networks_are_fed_arrays_still(pipeline: Pipeline) -> None:
    """For whoever calls them one by one: what comes back is of the kind that was fed."""
    draft = pipeline.start(REQUESTS[0])
    rows: Mapping[str, Any] = {name: tensor[None] for name, tensor in draft.branches["conditional"].inputs.items()}
    there = pipeline.denoise(draft.latents[None], pipeline.arrays.to_device(np.array([7.0], np.float32)), rows)
    read = pipeline.arrays.to_numpy
    fed: Mapping[str, NDArray[Any]] = {name: read(tensor) for name, tensor in rows.items()}
    here = pipeline.denoise(read(draft.latents)[None], np.array([7.0], np.float32), fed)
    assert isinstance(there, torch.Tensor) and isinstance(here, np.ndarray)
    np.testing.assert_array_equal(read(there), here)


def test_only_what_fits_the_network_is_run(pipeline: Pipeline, imported: Checkpoint) -> None:
    runner = pipeline.runner("denoiser", {})
    assert isinstance(runner, GraphRunner)
    with pytest.raises(InvalidRequest, match="no array for input timestep, encoder_hidden_states"):
        runner.run_on_device({"sample": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(InvalidRequest, match="has shape"):
        runner.run_on_device({"sample": torch.zeros(1, 3, 8, 8)})
    other = Pipeline(imported("sd1"), threads=1).runner("denoiser", {})
    assert isinstance(other, GraphRunner)
    with pytest.raises(BackendFailed, match=f"{Path('unet/model.onnx')} on onnxruntime takes NumPy arrays only"):
        other.run_on_device({})


def test_kept_features_are_numpys(imported: Checkpoint) -> None:
    """With them pictures are, too: both go into one network."""
    manifest = replace(read_manifest(imported("sd1")), step_cache=StepCache("full.onnx", "shallow.onnx"))
    assert Pipeline(imported("sd1"), backend="torch", manifest=manifest).arrays is NUMPY


def test_nothing_is_read_before_it_is_decoded(imported: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose tensors NumPy cannot take: nowhere is one made an array but by `arrays.read`."""

    def refused(*problem: Any, **options: Any) -> NDArray[Any]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    monkeypatch.setattr(torch.Tensor, "__array__", refused)
    pipeline = Pipeline(imported("sd1"), backend="torch", threads=1)
    assert [image.shape for image in finished(pipeline, *map(pipeline.start, REQUESTS))] == [(SIZE, SIZE, 3)] * 5
    assert pipeline.encode_image(sample_picture()).shape == (4, SIZE // 4, SIZE // 4)
    assert all(
        row.dtype == torch.float16
        for row in (*encode_caption(pipeline, PROMPT).values(), *encode_negative_prompt(pipeline).values())
    )


def test_what_goes_wrong_on_the_way_is_told_as_the_networks_failures_are(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = [pipeline.start(REQUESTS[2]), pipeline.start(REQUESTS[0])]
    before = [draft.latents for draft in drafts]

    def full(*problem: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.backends.torch_arrays.TorchArrays.concatenate", full)
        patch.setattr("stillhouse.backends.torch_arrays.TorchArrays.stack", full)
        with pytest.raises(BackendFailed, match="torch could not advance pictures with .*: CUDA out of memory"):
            pipeline.advance(drafts)
    assert [draft.index for draft in drafts] == [0, 0]
    assert all(one is other.latents for one, other in zip(before, drafts, strict=True))
