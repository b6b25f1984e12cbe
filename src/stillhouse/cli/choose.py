"""`stillhouse choose DIR --goal memory`: choose again among the configurations that `accelerate` measured."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stillhouse.accelerate.records.report import read_report, write_report
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.selection.choose import choose_trials
from stillhouse.accelerate.views.console import format_report
from stillhouse.accelerate.views.write_reports import write_reports
from stillhouse.accelerate.workspace import lock_directory
from stillhouse.cli.accelerate import NOTHING_CHOSEN, add_choice_options, merge_bounds, read_bounds


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse choose` to its argument parser."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="output directory of `stillhouse accelerate`")
    add_choice_options(parser)


def run(arguments: Namespace) -> int:
    """Choose among measured configurations by the given goal and bounds, write manifest and reports, print the report.

    Returns:
        the exit code: 1 if no configuration is within the bounds, else 0.
    """
    read_report(arguments.directory)  # a directory without a report is refused before it is locked
    with lock_directory(arguments.directory):
        report = read_report(arguments.directory)
        bounds = merge_bounds(report.bounds, read_bounds(arguments))
        report = choose_trials(report, arguments.goal or report.goal, bounds)
        apply_choice(arguments.directory, report)
        write_report(arguments.directory, report)
        write_reports(arguments.directory, report)
    print(format_report(report, directory=arguments.directory))
    return 0 if report.chosen else NOTHING_CHOSEN
