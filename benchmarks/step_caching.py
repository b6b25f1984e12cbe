"""What step caching costs in quality, on the embedded model: `python -m benchmarks.step_caching`.

The same captions, steps and networks with and without a cache, judged by the oracle: random weights of a large size
show its speed (`python -m benchmarks.race`), but say nothing of its pictures. An interrupted run goes on.
"""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.pipeline_grid import CONFIRMED_CAPTIONS, SCORES, Grid, Way
from benchmarks.record import read_earlier, write_results
from stillhouse.accelerate.evaluation.score_decision import paired_score_gain

NAME = "step_caching"
NETWORK, STEPS, INTERVALS = "openvino int8 bf16", "20", (1, 2, 3)


def main() -> None:
    """Generate and score the pictures of each interval, and write the results after each."""
    rows: dict[str, Any] = dict(read_earlier(NAME).get("rows", {}))
    grid = Grid()
    for interval in INTERVALS:
        if str(interval) not in rows:
            began = perf_counter()
            correct = grid.score(_way(interval), 0, CONFIRMED_CAPTIONS)
            marks = {name: "".join("1" if value else "0" for value in values) for name, values in correct.items()}
            rows[str(interval)] = {"captions": CONFIRMED_CAPTIONS, **marks}
            write_results(NAME, {"network": NETWORK, "steps": STEPS, "rows": rows})
            shares = ", ".join(f"{name} {marks[name].count('1') / CONFIRMED_CAPTIONS:.3f}" for name in SCORES)
            print(f"interval {interval}: {shares}, {perf_counter() - began:.0f} s", flush=True)


def _way(interval: int) -> Way:
    cache = [("cache_interval", str(interval))] if interval > 1 else []
    return Way(NETWORK, (("sampler", "ddim"), ("steps", STEPS), *cache))


def caching_table(results: Mapping[str, Any]) -> str:
    """Return the scores of each interval and their paired differences to no cache."""
    head = ["steps that run all layers", *(f"{name.replace('_', ' ')} (points to all steps)" for name in SCORES)]
    rows = []
    for interval, row in results["rows"].items():
        cells = []
        for name in SCORES:
            share = f"{100 * row[name].count('1') / row['captions']:.1f} %"
            before, after = ([mark == "1" for mark in results["rows"][number][name]] for number in ("1", interval))
            mean, low, high = (100 * value for value in paired_score_gain(before, after))
            cells.append(share if interval == "1" else f"{share} ({mean:+.1f}, {low:+.1f} to {high:+.1f})")
        rows.append(["all" if interval == "1" else f"1 of {interval}", *cells])
    count = f"{results['rows']['1']['captions']:,}"
    note = f"{count} captions, {results['steps']} steps of DDIM with guidance, {results['network']}."
    return f"{markdown_table(head, rows)}\n{note}\n"


if __name__ == "__main__":
    main()
