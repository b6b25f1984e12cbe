"""Pictures are what they were when `expected.json` was recorded, up to what other processors round differently.

The tolerances lie between what another processor changes and what a fault does. Kernels are chosen by processor, so a
network's answers differ in their last bits. OpenVINO in f32, whose kernels are all others, moves the latents of these
pictures by up to 5e-5 of their deviation, their means over a part by up to 1.2e-5, and pixels' means by up to 0.02
levels. A wrong level, a step too many, an interval of guidance that begins one evaluation late, or noise of another
step moved the means by 0.16 of the deviation and more, a coefficient of DPM-Solver++ that was one per cent too large
by 5e-3. What is smaller, `make yardstick` finds.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import stillhouse
from stillhouse.convert.import_model import import_model
from tests.golden.pictures import CHECKPOINTS, EXPECTED, IMPORTED, PICTURES, Summary, generate, opened, summary

LATENTS = 1e-3
"""Of the latents' deviation, by which the mean of any part may differ."""
PIXELS = 0.5
"""Levels, by which the mean of any part may differ."""


@pytest.fixture(scope="module")
def expected() -> dict[str, Summary]:
    recorded: dict[str, Summary] = json.loads(EXPECTED.read_text())
    return recorded


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], stillhouse.Pipeline]:
    """Open a model by name; the checkpoint is imported first, which loads torch."""

    @cache
    def find(model: str) -> stillhouse.Pipeline:
        if model != IMPORTED:
            return opened(model)
        directory: Path = tmp_path_factory.mktemp("golden") / model
        import_model(CHECKPOINTS / model, directory)
        return opened(directory)

    return find


@pytest.mark.parametrize(("model", "name"), PICTURES)
def test_a_picture_is_what_it_was(
    model: str, name: str, pipeline: Callable[[str], stillhouse.Pipeline], expected: dict[str, Summary]
) -> None:
    drawn = summary(*generate(pipeline(model), PICTURES[model, name]))
    before = expected[f"{model} {name}"]
    np.testing.assert_allclose(drawn["latents"], before["latents"], rtol=0, atol=LATENTS * before["deviation"][0])
    np.testing.assert_allclose(drawn["pixels"], before["pixels"], rtol=0, atol=PIXELS)


def test_every_recorded_picture_is_drawn(expected: dict[str, Summary]) -> None:
    assert list(expected) == [f"{model} {name}" for model, name in PICTURES]
