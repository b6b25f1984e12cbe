"""The report for people: `report.html` and `summary.xlsx` beside `report.json`."""

import warnings
from pathlib import Path

from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.views.report_page import write_html
from stillhouse.accelerate.views.xlsx import write_summary
from stillhouse.errors import RuntimeMissing

HTML, SUMMARY = "report.html", "summary.xlsx"


def publish(directory: Path, report: Report) -> list[str]:
    """Write every view; the names of the files. What makes one may not be installed: then it is left out, with a
    warning that says so."""
    written = []
    for name, write in ((HTML, write_html), (SUMMARY, write_summary)):
        try:
            write(report, directory / name)
            written.append(name)
        except RuntimeMissing as missing:
            warnings.warn(f"{name} was not written: {missing}", stacklevel=2)
    return written
