"""Write the views of a report, `report.html` and `summary.xlsx`, next to `report.json`."""

import warnings
from pathlib import Path

from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.views.report_page import write_report_page
from stillhouse.accelerate.views.xlsx import write_spreadsheet
from stillhouse.errors import RuntimeMissing

REPORT_PAGE_FILE, SPREADSHEET_FILE = "report.html", "summary.xlsx"


def write_reports(directory: Path, report: Report) -> list[str]:
    """Write every view and return the names of the files.

    A view whose package is not installed is left out with a warning.
    """
    written = []
    for name, write in ((REPORT_PAGE_FILE, write_report_page), (SPREADSHEET_FILE, write_spreadsheet)):
        try:
            write(report, directory / name)
            written.append(name)
        except RuntimeMissing as missing:
            warnings.warn(f"{name} was not written: {missing}", stacklevel=2)
    return written
