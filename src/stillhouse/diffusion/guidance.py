"""Classifier-free guidance, with a scale, an interval and a rescale for every picture of its own."""

from typing import Any

from stillhouse.diffusion.tensor import Coefficient, Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: Coefficient) -> Tensor:
    """Away from the unconditional output and past the conditional one (arXiv 2207.12598, equation 6).

    `scale` counts as in diffusers: 1 is the conditional output itself. The paper's w is scale - 1.

    >>> guide(1.0, 0.5, 3.0)
    2.0
    """
    return unconditional + (conditional - unconditional) * scale


def rescale_factor(guided: Any, conditional: Any, share: float) -> float:
    """What pulls the guided output's spread back towards the conditional one's (arXiv 2305.08891, equations 15 and 16).

    Args:
        guided, conditional: outputs of one picture, any array or tensor with `std`.
        share: phi of the paper, 0 (leave it) to 1 (the same standard deviation).

    Returns:
        what the guided output is to be multiplied by.
    """
    spread = float(guided.std())
    return share * float(conditional.std()) / spread + (1 - share) if spread else 1.0


def rescale(guided: Any, conditional: Any, share: float) -> Any:
    """The guided output with its spread pulled back, see `rescaling`."""
    return rescale_factor(guided, conditional, share) * guided


def is_guided(scale: float, interval: tuple[float, float], share: float) -> bool:
    """Whether guidance acts once this share of the walk is done; where it does not, one row is enough.

    A scale up to 1 means no guidance, as in diffusers. The interval (arXiv 2404.07724) is half open, [from, to):
    (0, 0.5) guides 2 of 4 steps.

    >>> [is_guided(7.5, (0.0, 0.5), step / 4) for step in range(4)]
    [True, True, False, False]
    """
    begin, end = interval
    return scale > 1 and begin <= share < end
