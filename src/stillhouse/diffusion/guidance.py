"""Guidance: which branches of a network are evaluated at a step, and how their outputs are combined.

A branch is one set of conditioning inputs of a picture: with its prompt, without it, with its source image only. The
guided output is a base branch plus weighted differences of other branches from it:

    guided = base + sum of weight * (branch - base)

Classifier-free guidance (arXiv 2207.12598, equation 6) has the unconditional branch as base and one difference.
InstructPix2Pix (arXiv 2211.09800, equation 3) has two: the image branch weighs s_image - s_text, the conditional
branch s_text. A network that takes the guidance scale as an input needs one branch only, and no base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.check import check_number
from stillhouse.diffusion.tensor import Coefficient, Tensor
from stillhouse.errors import InvalidRequest

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
MAX_GUIDANCE = 1000


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the network's outputs for one picture's branches are combined: base + sum of weight * (branch - base).

    A branch is one set of conditioning inputs, for example with or without the prompt.

    Args:
        main: name of the branch that is evaluated alone at the steps where guidance does not act.
        base: name of the branch that is subtracted from the others; None: guidance never acts.
        terms: (branch, weight) of each difference from the base; the last branch is the main branch.
        interval: start and end of the part of the trajectory where guidance acts, as shares from 0 (pure noise) to 1
            (clean); the end is excluded (arXiv 2404.07724).
        rescale: phi of arXiv 2305.08891, equation 16, 0 to 1: how far the guided output's standard deviation is
            brought back to the main branch's.

    Raises:
        InvalidRequest: the interval is not two rising shares, the rescale is outside 0 to 1, only one of base and terms
            is given, or the last term is not the main branch.

    >>> classifier_free(7.5, interval=(0.0, 0.5)).active_branches(0.25)
    ('unconditional', 'conditional')
    >>> classifier_free(7.5, interval=(0.0, 0.5)).active_branches(0.5)
    ('conditional',)
    """

    main: str = CONDITIONAL
    base: str | None = None
    terms: tuple[tuple[str, float], ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_guidance_interval(self.interval)
        check_number("guidance_rescale", self.rescale, 0, 1)
        if (self.base is None) != (not self.terms) or (self.terms and self.terms[-1][0] != self.main):
            raise InvalidRequest(
                f"guidance has the base {self.base!r}, the terms {self.terms} and the main branch {self.main!r}",
                allowed="no base and no terms, or a base and terms of which the main branch is the last",
            )

    def acts(self, progress: float) -> bool:
        """Return whether guidance acts at a step that begins at `progress`, a share of the trajectory, 0 to 1."""
        start, end = self.interval
        return self.base is not None and start <= progress < end

    def active_branches(self, progress: float) -> tuple[str, ...]:
        """Return the names of the branches that are evaluated at `progress`, a share of the trajectory, 0 to 1.

        These are the base and then the branches of the terms; where guidance does not act, only the main branch.
        """
        if self.base is None or not self.acts(progress):
            return (self.main,)
        return (self.base, *(branch for branch, _ in self.terms))

    def weights(self, progress: float) -> tuple[float, ...]:
        """Return the weight of each term at `progress`, a share of the trajectory, 0 to 1.

        Where guidance does not act, the only weight is 0.
        """
        return tuple(weight for _, weight in self.terms) if self.acts(progress) else (0.0,)


def classifier_free(scale: float, interval: tuple[float, float] = (0.0, 1.0), rescale: float = 0.0) -> Guidance:
    """Return classifier-free guidance: unconditional + scale * (conditional - unconditional).

    Args:
        scale: guidance scale as in diffusers, 0 to 1000; up to 1 means no guidance. The w of the paper is scale - 1.
        interval, rescale: as in `Guidance`.
    """
    check_number("guidance", scale, 0, MAX_GUIDANCE)
    if scale <= 1:
        return Guidance(interval=interval, rescale=rescale)
    return Guidance(CONDITIONAL, UNCONDITIONAL, ((CONDITIONAL, scale),), interval, rescale)


def guide(base: Tensor, branches: Sequence[Tensor], weights: Sequence[Coefficient]) -> Tensor:
    """Return the guided output: base + the sum of weight * (branch - base) over the branches.

    >>> guide(0.5, [1.0], [3.0])
    2.0
    """
    guided = base
    for branch, weight in zip(branches, weights, strict=True):
        guided = guided + (branch - base) * weight
    return guided


def rescale_factor(guided: Any, main: Any, share: float) -> float:
    """Return the factor that brings the guided output's standard deviation back to the main branch's.

    arXiv 2305.08891, equations 15 and 16.

    Args:
        guided, main: guided output, and output of the main branch, for one picture; arrays or tensors with `std`.
        share: phi of the paper, from 0 (the factor is 1) to 1 (both standard deviations become equal).
    """
    spread = float(guided.std())
    return share * float(main.std()) / spread + (1 - share) if spread else 1.0


def check_guidance_interval(interval: tuple[float, float]) -> None:
    """Raise InvalidRequest unless the interval is two shares of the trajectory, 0 to 1, the earlier one first."""
    if len(interval) != 2:
        raise InvalidRequest(f"guidance_interval is {interval}", allowed="two numbers from 0 to 1")
    start, end = interval
    check_number("the end of guidance_interval", end, 0, 1)
    check_number("the beginning of guidance_interval", start, 0, end)
