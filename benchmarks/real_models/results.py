"""Results of all networks, in results/real_models.json: written after each network, so that a second run goes on."""

from collections.abc import Mapping
from typing import Any

from benchmarks import record
from stillhouse.measure.machine import Machine, read_machine
from stillhouse.validation import convert

NAME = "real_models"


def read_earlier(budget: str) -> dict[str, Any]:
    """Return the results by network that this machine measured with the same budget; none where there is no file."""
    if not (record.RESULTS / f"{NAME}.json").exists():
        return {}
    earlier = record.read_results(NAME)
    is_same_machine = convert(Machine, earlier["machine"]).fingerprint() == read_machine().fingerprint()
    return dict(earlier["models"]) if is_same_machine and earlier["budget"] == budget else {}


def write_models(budget: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the results of all networks so far."""
    record.write_results(NAME, {"budget": budget, "models": models})
