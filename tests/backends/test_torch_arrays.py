"""A trajectory on torch's tensors is the trajectory on NumPy's arrays, to the bit."""

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
from stillhouse.diffusion import (
    CONDITIONAL,
    INITIAL_STEP,
    NUMPY,
    UNCONDITIONAL,
    Arrays,
    Branch,
    Guidance,
    InpaintBlend,
    SamplingPlan,
    Trajectory,
    advance,
    classifier_free,
    gaussian,
)
from stillhouse.errors import InvalidRequest, RuntimeMissing
from tests.diffusion.plans import PIX2PIX
from tests.diffusion.test_trajectory import SHAPE, plans

HERE: Arrays = TorchArrays("cpu")
FUSED: Arrays = TorchArrays("cpu", guided_step)
"""As on a GPU: guidance and step are one operation, which on a processor is the kernel's reference."""


def linear(rows: Any, timesteps: Any, conditioning: Mapping[str, Any]) -> Any:
    """A made-up network of sums and products, which both kinds of arrays round alike. It sees more than it tells."""
    column = conditioning["text"][:, 0, 0].reshape(-1, 1, 1, 1) + timesteps.reshape(-1, 1, 1, 1) * (1 / 4096)
    return rows[:, : SHAPE[0]] * 0.375 + rows[:, -1:] * 0.125 + column


def make_trajectory(plan: SamplingPlan, arrays: Arrays, *, blends: bool, extra: bool) -> Trajectory:
    def noise(seed: int, *shape: int) -> Any:
        return arrays.to_device(gaussian(seed, INITIAL_STEP, shape))

    mask = arrays.to_device((gaussian(5, INITIAL_STEP, (1, *SHAPE[1:])) > 0).astype(np.float32))
    channels = noise(3, *SHAPE) if extra else None
    seeds = {CONDITIONAL: plan.seed + 1, UNCONDITIONAL: 2, "image": 6}
    return Trajectory(
        plan,
        noise(plan.seed, *SHAPE),
        {name: Branch({"text": noise(seed, 3, 5)}, channels) for name, seed in seeds.items()},
        (InpaintBlend(noise(4, *SHAPE), mask, noise(plan.seed, *SHAPE)),) if blends else (),
    )


def guided_by(plan: SamplingPlan, guidance: Guidance) -> SamplingPlan:
    """The plan with other guidance in its own interval."""
    return replace(plan, guidance=replace(guidance, interval=plan.guidance.interval))


@st.composite
def unscaled_plans(draw: st.DrawFn) -> SamplingPlan:
    """Plans of one to three rows, without rescaled guidance, whose standard deviations are sums in another order."""
    plan = draw(plans())
    return guided_by(plan, draw(st.sampled_from([replace(plan.guidance, rescale=0.0), PIX2PIX])))


@pytest.mark.parametrize("tensors", [HERE, FUSED], ids=["plain", "fused"])
@given(st.lists(unscaled_plans(), min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)  # the first call of an op registers it
def test_every_sampler_moves_tensors_as_arrays(
    tensors: Arrays, batch: list[SamplingPlan], blends: bool, extra: bool
) -> None:
    """All but the rescaling of guidance, whose standard deviations are sums in another order."""
    ours, theirs = (
        [make_trajectory(plan, arrays, blends=blends, extra=extra) for plan in batch] for arrays in (tensors, NUMPY)
    )
    for trajectories, arrays in ((ours, tensors), (theirs, NUMPY)):
        while waiting := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            advance(waiting, linear, arrays)
    for trajectory, other in zip(ours, theirs, strict=True):
        assert isinstance(trajectory.latents, Tensor) and isinstance(trajectory.denoised, Tensor)
        np.testing.assert_array_equal(HERE.to_numpy(trajectory.latents), other.latents)
        np.testing.assert_array_equal(HERE.to_numpy(trajectory.denoised), other.denoised)


@pytest.mark.parametrize("tensors", [HERE, FUSED], ids=["plain", "fused"])
@given(plans(), st.permutations([Guidance(), classifier_free(3.5), PIX2PIX]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_batch_of_one_two_and_three_rows_is_each_picture_alone(
    tensors: Arrays, plan: SamplingPlan, kinds: list[Guidance], rescales: bool
) -> None:
    """Bit for bit, at every evaluation, whichever picture comes first."""
    kinds = [replace(guidance, rescale=0.7 * rescales) for guidance in kinds]
    batch = [guided_by(replace(plan, seed=seed), guidance) for seed, guidance in enumerate(kinds)]
    together, alone = ([make_trajectory(plan, tensors, blends=False, extra=False) for plan in batch] for _ in range(2))
    while not together[0].is_done:
        advance(together, linear, tensors)
        for trajectory, other in zip(together, alone, strict=True):
            advance([other], linear, tensors)
            assert torch.equal(trajectory.latents, other.latents)  # type: ignore[arg-type]
            assert torch.equal(trajectory.denoised, other.denoised)  # type: ignore[arg-type]


@given(plans(), st.sampled_from([classifier_free(3.5), PIX2PIX]))
@settings(max_examples=30)
def test_rescaled_guidance_differs_by_rounding(plan: SamplingPlan, guidance: Guidance) -> None:
    plan = replace(plan, guidance=replace(guidance, rescale=0.7))
    trajectory, other = (make_trajectory(plan, arrays, blends=False, extra=False) for arrays in (HERE, NUMPY))
    while not trajectory.is_done:
        advance([trajectory], linear, HERE)
        advance([other], linear)
    scale = max(1.0, float(np.abs(other.latents).max()))
    np.testing.assert_allclose(HERE.to_numpy(trajectory.latents), other.latents, atol=1e-4 * scale)


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
