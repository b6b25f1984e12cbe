"""Writing of a report as an HTML page, `report.html`, and as a spreadsheet, `summary.xlsx`, next to `report.json`."""

import warnings
from pathlib import Path

from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.views.report_page import write_report_page
from stillhouse.accelerate.views.xlsx import write_spreadsheet
from stillhouse.errors import RuntimeMissing

REPORT_PAGE_FILE, SPREADSHEET_FILE = "report.html", "summary.xlsx"


def write_reports(directory: Path, report: Report) -> list[str]:
    """Write a report as an HTML page and as a spreadsheet, and return the names of the written files.

    A file whose package (jinja2 or openpyxl) is not installed is left out, with a warning.

    Args:
        directory: directory of the files.
        report: the report to write.
    """
    written = []
    for name, write in ((REPORT_PAGE_FILE, write_report_page), (SPREADSHEET_FILE, write_spreadsheet)):
        try:
            write(report, directory / name)
            written.append(name)
        except RuntimeMissing as missing:
            warnings.warn(f"{name} was not written: {missing}", stacklevel=2)
    return written
