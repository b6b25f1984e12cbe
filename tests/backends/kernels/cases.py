"""What kernels are run on: every dtype, and shapes of which no side is a power of two. Knows no Triton."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a kernel on random numbers.

    Args:
        kernel: which.
        dtype: of what it is given.
        shape: of its first argument.
        options: whatever else it takes.
    """

    kernel: str
    dtype: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a test's name."""
        told = "".join(f"-{name}={value}" for name, value in self.options.items())
        return f"{self.kernel}-{self.dtype}-{'x'.join(map(str, self.shape))}{told}"


def _cases(kernel: str, shapes: list[tuple[int, ...]], *options: Mapping[str, Any]) -> list[Case]:
    return [Case(kernel, dtype, shape, told) for dtype, shape, told in product(DTYPES, shapes, options or ({},))]


CASES = [
    *_cases("cast", [(3, 5, 7), (2, 3, 5, 9)], *({"to": name} for name in DTYPES)),
    *_cases("silu", [(1,), (3, 5, 7), (2, 6, 5, 9)]),
    *_cases("geglu", [(2,), (5, 6), (2, 7, 130)], {"tanh": False}, {"tanh": True}),
    *_cases("layer_norm", [(1, 3), (2, 5, 20), (3, 320)]),
    *_cases("add_layer_norm", [(1, 3), (2, 5, 20), (3, 320)]),
    *_cases("group_norm", [(1, 4, 3, 1), (2, 30, 7, 5), (2, 320, 9, 8)], {"silu": False}, {"silu": True}),
    *_cases(
        "group_norm", [(2, 30, 7, 5), (2, 320, 9, 8)], *({"silu": True, "way": way} for way in ("cached", "parts"))
    ),
    *_cases(
        "guided_step",
        [(1, 1, 1, 1), (3, 4, 5, 7)],
        {"previous": False},
        {"previous": True},
        {"previous": True, "pairs": True},
        {"previous": False, "terms": 2},
        {"previous": True, "terms": 2},
        {"previous": True, "terms": 3},
    ),
    # More pixels than one part has, the last one shorter; and numbers far from zero, of which a sum of squares would
    # leave nothing.
    *(
        Case("group_norm", "float32", (1, 8, 31, 17), {"silu": False, "mean": 1000.0, "way": way})
        for way in ("held", "cached", "parts")
    ),
    # And more pixels than a program holds at once, the last ones fewer: of a part, of a strip.
    Case("group_norm", "float16", (1, 4, 65, 64), {"silu": True, "way": "parts"}),
    Case("group_norm", "float16", (1, 8, 65, 64), {"silu": True, "way": "cached"}),
    # And parts so many that their moments are joined first, the last one shorter.
    Case("group_norm", "float32", (1, 30, 131, 127), {"silu": True, "mean": 100.0, "way": "parts"}),
    Case("layer_norm", "float32", (2, 320), {"mean": 1000.0}),
]
GROUPS = {1: 1, 4: 2, 8: 2, 30: 3, 320: 32}
"""Of a GroupNorm, by its channels."""
TRAJECTORIES = "trajectories of several samplers, together"
ALONE = "trajectories with one to three rows, together and alone"
TAILS = "gelu of gates from -6 to 6 in"
