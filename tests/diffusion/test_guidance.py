import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import guide, is_guided, rescale

RNG = np.random.default_rng(4)
CONDITIONAL, UNCONDITIONAL = RNG.standard_normal((2, 4, 8, 8)).astype(np.float32)


def test_scales_of_zero_and_one_are_the_two_outputs() -> None:
    np.testing.assert_array_equal(guide(CONDITIONAL, UNCONDITIONAL, 0.0), UNCONDITIONAL)
    np.testing.assert_allclose(guide(CONDITIONAL, UNCONDITIONAL, 1.0), CONDITIONAL, rtol=1e-5, atol=1e-6)


@given(scale=st.floats(0, 20))
def test_guidance_is_linear_in_its_scale(scale: float) -> None:
    expected = (1 - scale) * UNCONDITIONAL + scale * CONDITIONAL
    np.testing.assert_allclose(guide(CONDITIONAL, UNCONDITIONAL, scale), expected, rtol=1e-4, atol=1e-4)


@given(share=st.floats(0, 1))
def test_rescale_moves_the_spread_by_its_share(share: float) -> None:
    guided = guide(CONDITIONAL, UNCONDITIONAL, 7.5)
    spread = float(rescale(guided, CONDITIONAL, share).std())
    expected = share * float(CONDITIONAL.std()) + (1 - share) * float(guided.std())
    assert spread == pytest.approx(expected, rel=1e-5)


def test_rescale_leaves_a_flat_output_alone() -> None:
    flat = np.zeros((4, 8, 8), np.float32)
    np.testing.assert_array_equal(rescale(flat, CONDITIONAL, 0.7), flat)


def test_torch_tensors_give_what_arrays_give() -> None:
    tensors = torch.from_numpy(CONDITIONAL), torch.from_numpy(UNCONDITIONAL)
    theirs = rescale(guide(*tensors, 7.5), tensors[0], 0.7).numpy()
    np.testing.assert_allclose(theirs, rescale(guide(CONDITIONAL, UNCONDITIONAL, 7.5), CONDITIONAL, 0.7), rtol=1e-5)


@given(scale=st.floats(0, 1), share=st.floats(0, 1, exclude_max=True))
def test_scales_up_to_one_never_guide(scale: float, share: float) -> None:
    assert not is_guided(scale, (0.0, 1.0), share)
    assert is_guided(scale + 1.001, (0.0, 1.0), share)


@given(begin=st.floats(0, 1), end=st.floats(0, 1), share=st.floats(0, 1, exclude_max=True))
def test_neighbouring_intervals_share_no_step(begin: float, end: float, share: float) -> None:
    inside = [is_guided(4.0, interval, share) for interval in ((0.0, begin), (begin, max(begin, end)))]
    assert sum(inside) == (share < max(begin, end))
