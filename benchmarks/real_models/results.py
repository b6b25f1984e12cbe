"""Results of all networks, in results/real_models.json: written after each network, so that a second run goes on."""

from collections.abc import Mapping
from typing import Any

from benchmarks import record

NAME = "real_models"


def read_earlier(budget: str) -> dict[str, Any]:
    """Return the results by network that this machine measured with the same budget; none where there is no file."""
    earlier = record.read_earlier(NAME)
    return dict(earlier["models"]) if earlier.get("budget") == budget else {}


def write_models(budget: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the results of all networks so far."""
    record.write_results(NAME, {"budget": budget, "models": models})
