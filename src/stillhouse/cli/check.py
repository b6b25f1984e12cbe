"""`stillhouse check DIR`: measure an accelerated pipeline again; exit with 1 if it is slower or less accurate now."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.accelerate.records.report import read_report
from stillhouse.accelerate.regression_check import check_regression
from stillhouse.cli.arguments import positive_integer

REGRESSED = 1


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse check` to its argument parser."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="output directory of `stillhouse accelerate`")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="maximum number; default: the backend decides"
    )


def run(arguments: Namespace) -> int:
    """Measure again what `stillhouse accelerate` chose, and print a line for each network and for the whole pipeline.

    Returns:
        the exit code: 1 if anything is slower than in the report or violates a bound, else 0.
    """
    report = read_report(arguments.directory)
    has_regressed = False
    for result in check_regression(arguments.directory, report, arguments.threads):
        ratio = result.measured.ratio
        speed = f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "not timed"
        verdict = result.problem or "as measured before"
        print(f"{result.component}: {result.recorded.candidate.name}: {speed}: {verdict}", flush=True)
        has_regressed = has_regressed or bool(result.problem)
    return REGRESSED if has_regressed else 0
