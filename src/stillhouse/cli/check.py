"""`stillhouse check DIR`: measure again what was chosen; exit code 1 where it is slower or worse than it was."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.accelerate.records.report import read_report
from stillhouse.accelerate.regression_check import check_regression
from stillhouse.cli.arguments import positive_integer

REGRESSED = 1


def declare(parser: ArgumentParser) -> None:
    """The options of `check`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="what `stillhouse accelerate` made")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="at most so many; default: the engine decides"
    )


def run(arguments: Namespace) -> int:
    """Measure, print a line for each network, and say by the exit code whether all is well."""
    report = read_report(arguments.directory)
    worse = False
    for finding in check_regression(arguments.directory, report, arguments.threads):
        ratio = finding.measured.ratio
        speed = f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "no time"
        verdict = finding.problem or "as measured before"
        print(f"{finding.component}: {finding.recorded.candidate.name}: {speed}: {verdict}", flush=True)
        worse = worse or bool(finding.problem)
    return REGRESSED if worse else 0
