"""`stillhouse choose DIR --goal memory`: decide again among what was measured."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.accelerate.records.report import read_report, write_report
from stillhouse.accelerate.selection.apply import apply
from stillhouse.accelerate.selection.choose import choose
from stillhouse.accelerate.views.console import table
from stillhouse.accelerate.views.write_reports import publish
from stillhouse.cli.accelerate import NOTHING, add_choice, bounds_of, merged


def declare(parser: ArgumentParser) -> None:
    """The options of `choose`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="what `stillhouse accelerate` made")
    add_choice(parser)


def run(arguments: Namespace) -> int:
    """Choose, write it into the directory, and print it. Exit code 1 where nothing keeps the bounds."""
    report = read_report(arguments.directory)
    bounds = merged(report.bounds, bounds_of(arguments))
    report = choose(report, arguments.goal or report.goal, bounds)
    apply(arguments.directory, report)
    write_report(arguments.directory, report)
    publish(arguments.directory, report)
    print(table(report))
    return 0 if report.chosen else NOTHING
