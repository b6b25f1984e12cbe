"""`stillhouse choose DIR --goal memory`: decide again among what was measured."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.accelerate.records.report import read_report, write_report
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.selection.choose import choose_trials
from stillhouse.accelerate.views.console import format_report
from stillhouse.accelerate.views.write_reports import write_reports
from stillhouse.cli.accelerate import NOTHING_CHOSEN, add_choice_options, merge_bounds, read_bounds


def declare(parser: ArgumentParser) -> None:
    """The options of `choose`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="what `stillhouse accelerate` made")
    add_choice_options(parser)


def run(arguments: Namespace) -> int:
    """Choose, write it into the directory, and print it. Exit code 1 where nothing keeps the bounds."""
    report = read_report(arguments.directory)
    bounds = merge_bounds(report.bounds, read_bounds(arguments))
    report = choose_trials(report, arguments.goal or report.goal, bounds)
    apply_choice(arguments.directory, report)
    write_report(arguments.directory, report)
    write_reports(arguments.directory, report)
    print(format_report(report))
    return 0 if report.chosen else NOTHING_CHOSEN
