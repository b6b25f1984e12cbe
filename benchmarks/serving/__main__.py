"""`python -m benchmarks.serving [compare|overhead|rate|prove]`."""

import argparse
import signal
import sys

from benchmarks.serving.compare import TRACES, compare_servers
from benchmarks.serving.overhead import measure_overhead
from benchmarks.serving.prove import verify_pixels
from benchmarks.serving.rate import AGAINST, measure_rates
from benchmarks.serving.ways import SERVERS
from stillhouse.cli.progress import show_progress


def main() -> None:
    """Compare servers, measure the overhead or the rate of serving, or check that servers generate equal pixels."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", nargs="?", choices=("compare", "overhead", "rate", "prove"), default="compare")
    parser.add_argument("--parts", type=int, default=4, help="parts per trace; servers take turns; default: 4")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of a part; default: 30")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first part; default: 0")
    parser.add_argument("--server", action="append", choices=SERVERS, help="only this server; repeatable")
    parser.add_argument(
        "--trace", action="append", choices=[one.name for one in TRACES], help="only this trace; repeatable"
    )
    parser.add_argument("--rounds", type=int, help="rounds of overhead (40) and of rate (8)")
    parser.add_argument("--against", default=AGAINST, help=f"earlier commit of rate; default: {AGAINST}")
    parser.add_argument("--results", help="name of the file in benchmarks/results; default: serving[_overhead|_rate]")
    arguments = parser.parse_args()
    # SIGTERM must raise, so that the servers are stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    names = arguments.server or list(SERVERS)
    if arguments.what == "prove":
        sys.exit(0 if verify_pixels(names) else 1)
    if arguments.what == "overhead":
        measure_overhead(arguments.rounds or 40, arguments.results or "serving_overhead", _tell)
        return
    if arguments.what == "rate":
        results = arguments.results or "serving_rate"
        with show_progress() as bar:
            measure_rates(arguments.rounds or 8, arguments.against, results, _tell, bar)
        return
    traces = arguments.trace or [trace.name for trace in TRACES]
    with show_progress() as bar:
        compare_servers(
            names,
            traces,
            arguments.parts,
            arguments.seconds,
            arguments.seed,
            arguments.results or "serving",
            _tell,
            bar,
        )


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
