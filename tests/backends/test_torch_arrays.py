"""A walk on torch's tensors is the walk on NumPy's arrays, to the bit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.backends.kernels.guided_step import guided_step
from stillhouse.backends.registry import device_arrays
from stillhouse.backends.torch_arrays import KernelUnavailable, TorchArrays, load_fused_step
from stillhouse.diffusion import INITIAL_STEP, NUMPY, Arrays, InpaintBlend, Trajectory, advance, gaussian
from stillhouse.errors import InvalidRequest, RuntimeMissing
from tests.diffusion.test_trajectory import SHAPE, courses

HERE: Arrays = TorchArrays("cpu")
FUSED: Arrays = TorchArrays("cpu", guided_step)
"""As on a GPU: guidance and step are one operation, which on a processor is the kernel's reference."""


def linear(rows: Any, timesteps: Any, conditioning: Mapping[str, Any]) -> Any:
    """A made-up network of sums and products, which both kinds of arrays round alike. It sees more than it tells."""
    column = conditioning["text"][:, 0, 0].reshape(-1, 1, 1, 1) + timesteps.reshape(-1, 1, 1, 1) * (1 / 4096)
    return rows[:, : SHAPE[0]] * 0.375 + rows[:, -1:] * 0.125 + column


def make_trajectory(course: Any, arrays: Arrays, *, keep: bool, extra: bool) -> Trajectory:
    def noise(seed: int, *shape: int) -> Any:
        return arrays.to_device(gaussian(seed, INITIAL_STEP, shape))

    mask = arrays.to_device((gaussian(5, INITIAL_STEP, (1, *SHAPE[1:])) > 0).astype(np.float32))
    return Trajectory(
        course,
        noise(course.seed, *SHAPE),
        {"text": noise(course.seed + 1, 3, 5)},
        {"text": noise(2, 3, 5)},
        extra_channels=noise(3, *SHAPE) if extra else None,
        blend=InpaintBlend(noise(4, *SHAPE), mask, noise(course.seed, *SHAPE)) if keep else None,
    )


@pytest.mark.parametrize("tensors", [HERE, FUSED], ids=["plain", "fused"])
@given(st.lists(courses(), min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=100)
def test_every_sampler_walks_on_tensors_as_on_arrays(
    tensors: Arrays, these: list[Any], keep: bool, extra: bool
) -> None:
    """All but the rescaling of guidance, whose standard deviations are sums in another order."""
    these = [replace(course, guidance_rescale=0.0) for course in these]
    ours, theirs = (
        [make_trajectory(one, arrays, keep=keep, extra=extra) for one in these] for arrays in (tensors, NUMPY)
    )
    for some, arrays in ((ours, tensors), (theirs, NUMPY)):
        while waiting := [one for one in some if not one.is_done]:
            advance(waiting, linear, arrays)
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one.latents, Tensor) and isinstance(one.denoised, Tensor)
        np.testing.assert_array_equal(HERE.to_numpy(one.latents), other.latents)
        np.testing.assert_array_equal(HERE.to_numpy(one.denoised), other.denoised)


@given(courses())
@settings(max_examples=30)
def test_rescaled_guidance_differs_by_rounding(course: Any) -> None:
    course = replace(course, guidance=3.5, guidance_rescale=0.7, guidance_interval=(0.0, 1.0))
    one, other = (make_trajectory(course, arrays, keep=False, extra=False) for arrays in (HERE, NUMPY))
    while not one.is_done:
        advance([one], linear, HERE)
        advance([other], linear)
    scale = max(1.0, float(np.abs(other.latents).max()))
    np.testing.assert_allclose(HERE.to_numpy(one.latents), other.latents, atol=1e-4 * scale)


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 2), np.int64)])
@pytest.mark.parametrize("arrays", [HERE, NUMPY])
def test_what_is_placed_is_read(arrays: Arrays, array: Any) -> None:
    array.flags.writeable = False
    there = arrays.to_device(array)
    read = arrays.to_numpy(there)
    assert isinstance(read, np.ndarray) and read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(arrays.to_numpy(arrays.stack([there, there])), np.stack([array, array]))
    np.testing.assert_array_equal(
        arrays.to_numpy(arrays.concatenate([there, there], 1)), np.concatenate([array, array], 1)
    )
    assert arrays.to_numpy(array) is array
    arrays.synchronize()


def test_what_is_read_stays_as_it_is() -> None:
    there = HERE.to_device(np.ones(3, np.float32))
    read = HERE.to_numpy(there)
    there.fill_(5)
    np.testing.assert_array_equal(read, np.ones(3, np.float32))


def test_only_engines_with_arrays_of_their_own_have_them() -> None:
    assert device_arrays("torch", {}) == HERE == device_arrays("torch", {"device": "cpu", "compile": "full"})
    assert device_arrays("onnxruntime", {}) is None and device_arrays("openvino", {}) is None
    with pytest.raises(InvalidRequest, match="allowed: cpu, cuda"):
        device_arrays("torch", {"device": "tpu"})


def test_a_kernel_that_does_not_run_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is no GPU to run it on; elsewhere there may be no compiler of C."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(KernelUnavailable, match="a dozen launches, and not one"):
        assert load_fused_step("cuda:0") is None
    assert load_fused_step("cpu") is None
    monkeypatch.setattr("stillhouse.backends.torch_arrays.find_spec", lambda name: None)
    assert load_fused_step("cuda:0") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("engine", ["torch", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_that_is_not_here_is_refused_before_anything_is_brought_to_it(engine: str) -> None:
    with pytest.raises((RuntimeMissing, InvalidRequest)):
        device_arrays(engine, {"device": "cuda"})
