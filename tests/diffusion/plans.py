"""Plans and branches as the tests of trajectories write them."""

from typing import Any

import pytest
from numpy.typing import NDArray

from stillhouse.diffusion import (
    CONDITIONAL,
    UNCONDITIONAL,
    Branch,
    Guidance,
    Prediction,
    Sampler,
    SamplingPlan,
    TimestepGrid,
    classifier_free,
    gaussian,
)

PIX2PIX = Guidance(CONDITIONAL, UNCONDITIONAL, (("image", 1.5 - 7.5), (CONDITIONAL, 7.5)))
"""Three branches: InstructPix2Pix with an image scale of 1.5 and a text scale of 7.5."""


def sampling_plan(
    grid: TimestepGrid,
    sampler: str = "ddim",
    prediction: Prediction = "epsilon",
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    **fields: Any,
) -> SamplingPlan:
    """Return a plan with classifier-free guidance of a scale."""
    return SamplingPlan(
        grid, sampler, prediction, classifier_free(guidance, guidance_interval, guidance_rescale), **fields
    )


def text(seed: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of one branch."""
    return {"text": gaussian(seed, 77, (3, 5))}


def branches(seed: int, channels: NDArray[Any] | None = None) -> dict[str, Branch]:
    """Return the branches with a prompt of that seed, without a prompt, and with its source image only."""
    seeds = {CONDITIONAL: seed, UNCONDITIONAL: 0, "image": 1000 + seed}
    return {name: Branch(text(number), channels) for name, number in seeds.items()}


def count_plans(patch: pytest.MonkeyPatch) -> list[Sampler]:
    """Return a list that the sampler joins each time evaluations are computed."""
    calls: list[Sampler] = []
    plan = Sampler.plan

    def counted(self: Sampler, *arguments: Any) -> Any:
        calls.append(self)
        return plan(self, *arguments)

    patch.setattr(Sampler, "plan", counted)
    return calls
