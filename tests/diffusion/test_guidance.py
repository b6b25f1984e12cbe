"""Guidance: the combination of branches, its interval and its rescale."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import Guidance, classifier_free, guide
from stillhouse.diffusion.guidance import rescale_factor
from stillhouse.errors import InvalidRequest
from tests.diffusion.plans import PIX2PIX

RNG = np.random.default_rng(4)
CONDITIONAL, UNCONDITIONAL, IMAGE = RNG.standard_normal((3, 4, 8, 8)).astype(np.float32)


def test_scales_of_zero_and_one_are_the_two_outputs() -> None:
    np.testing.assert_array_equal(guide(UNCONDITIONAL, [CONDITIONAL], [0.0]), UNCONDITIONAL)
    np.testing.assert_allclose(guide(UNCONDITIONAL, [CONDITIONAL], [1.0]), CONDITIONAL, rtol=1e-5, atol=1e-6)


@given(scale=st.floats(0, 20))
def test_guidance_is_linear_in_its_scale(scale: float) -> None:
    expected = (1 - scale) * UNCONDITIONAL + scale * CONDITIONAL
    np.testing.assert_allclose(guide(UNCONDITIONAL, [CONDITIONAL], [scale]), expected, rtol=1e-4, atol=1e-4)


@given(share=st.floats(0, 1))
def test_rescale_moves_the_spread_by_its_share(share: float) -> None:
    guided = guide(UNCONDITIONAL, [CONDITIONAL], [7.5])
    spread = float((rescale_factor(guided, CONDITIONAL, share) * guided).std())
    expected = share * float(CONDITIONAL.std()) + (1 - share) * float(guided.std())
    assert spread == pytest.approx(expected, rel=1e-5)


def test_rescale_leaves_a_flat_output_alone() -> None:
    flat = np.zeros((4, 8, 8), np.float32)
    np.testing.assert_array_equal(rescale_factor(flat, CONDITIONAL, 0.7) * flat, flat)


def test_three_branches_are_instructpix2pix() -> None:
    """Equation 3 of arXiv 2211.09800: e(0, 0) + s_i * (e(i, 0) - e(0, 0)) + s_t * (e(i, t) - e(i, 0)), in float64."""
    none, image, both = (array.astype(np.float64) for array in (UNCONDITIONAL, IMAGE, CONDITIONAL))
    expected = none + 1.5 * (image - none) + 7.5 * (both - image)
    ours = guide(UNCONDITIONAL, [IMAGE, CONDITIONAL], PIX2PIX.weights(0.0))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert PIX2PIX.active_branches(0.5) == ("unconditional", "image", "conditional")


def test_torch_tensors_give_what_arrays_give() -> None:
    def rescaled(base: Any, branch: Any) -> Any:
        guided = guide(base, [branch], [7.5])
        return rescale_factor(guided, branch, 0.7) * guided

    theirs = rescaled(torch.from_numpy(UNCONDITIONAL), torch.from_numpy(CONDITIONAL)).numpy()
    np.testing.assert_allclose(theirs, rescaled(UNCONDITIONAL, CONDITIONAL), rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": "unconditional"},
        {"terms": (("conditional", 2.0),)},
        {"base": "unconditional", "terms": (("conditional", 2.0), ("image", 1.0))},
    ],
)
def test_a_base_needs_terms_of_which_the_main_branch_is_the_last(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="allowed: no base and no terms, or a base and terms of which the main"):
        Guidance(**fields)


@given(scale=st.floats(0, 1), share=st.floats(0, 1, exclude_max=True))
def test_scales_up_to_one_never_guide(scale: float, share: float) -> None:
    assert classifier_free(scale).active_branches(share) == ("conditional",)
    assert classifier_free(scale + 1.001).active_branches(share) == ("unconditional", "conditional")


@given(begin=st.floats(0, 1), end=st.floats(0, 1), share=st.floats(0, 1, exclude_max=True))
def test_neighbouring_intervals_share_no_step(begin: float, end: float, share: float) -> None:
    inside = [classifier_free(4.0, interval).acts(share) for interval in ((0.0, begin), (begin, max(begin, end)))]
    assert sum(inside) == (share < max(begin, end))
