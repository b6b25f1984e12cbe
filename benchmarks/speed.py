"""Speed of a picture as a ratio: `python -m benchmarks.speed` writes results/speed.json.

One picture of Shapes, 35 steps with guidance, with the same weights and threads for all generators; then the seconds
of importing the package, and of a picture from a cold start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from benchmarks.generator_process import GUIDANCE, NAMES, PROMPT, STEPS, GeneratorProcess
from benchmarks.record import write_results
from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise

BASELINE = "diffusers, torch fp32"
_COLD_RUNS = 5


def main() -> None:
    """Measure in interleaved rounds, write the results and print them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        generators = {name: stack.enter_context(GeneratorProcess(name, arguments.threads)) for name in NAMES}
        seconds = run_interleaved(generators, arguments.rounds)
    rows = {
        name: {"seconds": asdict(summarise(times)), "ratio": asdict(paired_ratio(seconds[BASELINE], times))}
        for name, times in seconds.items()
    }
    cold = {
        "import": _import_seconds(),
        "first": _generate_seconds(warm=False),
        "generate": _generate_seconds(warm=True),
    }
    request = {"prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE, "threads": arguments.threads}
    write_results(
        "speed", {"asked": request, "rows": rows, "cold": {name: asdict(summarise(s)) for name, s in cold.items()}}
    )
    for name, row in rows.items():
        ratio = "{value:.2f}x [{low:.2f}, {high:.2f}]".format(**row["ratio"])
        print(f"{name:32} {row['seconds']['median']:.3f} s  {ratio}")
    for name, times in cold.items():
        print(f"{name:32} {summarise(times).median:.3f} s  (least {min(times):.3f} of {_COLD_RUNS})")


def _import_seconds() -> list[float]:
    code = "import time; t = time.perf_counter(); import stillhouse; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(_COLD_RUNS)]


def _generate_seconds(warm: bool) -> list[float]:
    """Return seconds of the whole command, with compiled networks in the cache (`warm`) or without."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stillhouse", "generate", PROMPT, "--out", str(Path(folder, "one.png"))]
        caches = [Path(folder, "cache" if warm else f"cache-{run}") for run in range(_COLD_RUNS)]
        if warm:
            _wall_seconds(command, caches[0])
        return [_wall_seconds(command, cache) for cache in caches]


def _wall_seconds(command: list[str], cache: Path) -> float:
    began = perf_counter()
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    return perf_counter() - began


if __name__ == "__main__":
    main()
