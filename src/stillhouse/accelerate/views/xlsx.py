"""The report of `stillhouse accelerate` as a spreadsheet. Its first four columns are those of Auto-Acceleration."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.views.columns import SPREADSHEET_COLUMNS, CellValue
from stillhouse.accelerate.views.formatting import describe_bounds, printable
from stillhouse.accelerate.views.rows import ReportRow, baseline_and_chosen, report_components, report_rows
from stillhouse.accelerate.views.summary import summarise_report
from stillhouse.accelerate.views.use_it import use_it
from stillhouse.html.extra import require_extra
from stillhouse.images.files import write_file

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell, MergedCell
    from openpyxl.worksheet.worksheet import Worksheet

_MAX_WIDTH = 60
_TASK_COLUMN = ("task", "name of the candidate; `onnx` is the unchanged model")
# Words of the tool Auto-Acceleration for backends and precisions. They are used so that users of this tool recognize
# the names of the rows.
_AUTO_ACCELERATION_NAMES = {"onnxruntime": "onnx", "f32": "fp32", "f16": "fp16"}


def write_spreadsheet(report: Report, path: Path) -> None:
    """Write a report as an .xlsx file with four sheets.

    `Sheet1` has a row for each candidate, `environment` the result, the machine and settings, `rejected` the reasons
    why candidates were not accepted, and `use it` the code that loads the choice. Numbers are stored with full
    precision and shown rounded. Texts are never stored as formulas.

    Args:
        report: the report to write.
        path: file to write, in the report's directory.

    Raises:
        InvalidRequest: the file cannot be written.
        RuntimeMissing: openpyxl is not installed.
    """
    book = require_extra("openpyxl").Workbook()
    rows = [row for component in report_components(report) for row in _baseline_first(report, component)]
    tasks = _task_names([_without_baseline_options(row) for row in rows])

    sheet = book.active
    sheet.title = "Sheet1"
    lines = [
        [task, *(column.value(row) for column in SPREADSHEET_COLUMNS)] for task, row in zip(tasks, rows, strict=True)
    ]
    _fill_sheet(
        sheet,
        [_TASK_COLUMN[0], *(column.heading for column in SPREADSHEET_COLUMNS)],
        lines,
        ["@", *(column.number_format for column in SPREADSHEET_COLUMNS)],
    )
    for number, row in enumerate(rows, 2):
        if row.chosen:
            _set_bold(sheet[number])

    meanings = [_TASK_COLUMN, *((column.heading, column.meaning) for column in SPREADSHEET_COLUMNS)]
    _fill_sheet(
        book.create_sheet("environment"), ["name", "value"], [*_environment_facts(report).items(), ("", ""), *meanings]
    )

    rejected = [_rejected_row(task, row) for task, row in zip(tasks, rows, strict=True) if not row.accepted]
    _fill_sheet(
        book.create_sheet("rejected"),
        ["task", "component", "candidate", "status", "reason", "log", "reproduce"],
        rejected,
    )

    entries = use_it(report, path.parent)
    code = [(entry.title, line) for entry in entries for line in entry.code.splitlines() if line]
    _fill_sheet(code_sheet := book.create_sheet("use it"), ["what", "line"], code)
    for number, (_, line) in enumerate(code, 2):
        code_sheet.cell(number, 2).value = line  # with its indentation, which `_fill_sheet` drops

    file = BytesIO()
    book.save(file)
    write_file(path, file.getvalue())


def _baseline_first(report: Report, component: str) -> list[ReportRow]:
    """Return the rows of a network's candidates, the baseline first, then in the order of measurement."""
    order = {trial.candidate.key: index for index, trial in enumerate(report.trials_of(component))}
    return sorted(report_rows(report, component), key=lambda row: (not row.baseline, order[row.trial.candidate.key]))


def _task_names(candidates: Sequence[Candidate]) -> list[str]:
    """Return a unique name for each candidate, in the same order: the name that Auto-Acceleration uses, if it has one.

    A number is appended to repeated names, such as `onnx_2`.
    """
    has_several = len({candidate.component for candidate in candidates} - {PIPELINE}) > 1
    names: dict[str, None] = {}
    for candidate in candidates:
        name = _task_name(candidate, has_several or candidate.component == PIPELINE)
        alternatives = (f"{name}_{number}" for number in count(2))
        names[
            name if name not in names else next(alternative for alternative in alternatives if alternative not in names)
        ] = None
    return list(names)


def _without_baseline_options(row: ReportRow) -> Candidate:
    """Return the row's candidate; the baseline of a network without its options, so that it has the name `onnx`."""
    candidate = row.trial.candidate
    is_network = row.baseline and candidate.options == BASELINE_OPTIONS
    return replace(candidate, options={}) if is_network else candidate


def _task_name(candidate: Candidate, with_component: bool) -> str:
    """Return the name of a candidate in the style of Auto-Acceleration, such as onnx, onnx_fp16 or openvino_fp32.

    Auto-Acceleration's names have no options. The candidate's options are appended, as in openvino_fp32_streams_2.

    Args:
        candidate: the candidate.
        with_component: whether the name begins with the name of the network.
    """
    recipe = "" if (candidate.backend, candidate.recipe) == ("onnxruntime", "f32") else candidate.recipe
    suffix = candidate.name.removeprefix(f"{candidate.backend} {candidate.recipe}")
    backend = "" if candidate.component == PIPELINE else candidate.backend
    words = [
        _AUTO_ACCELERATION_NAMES.get(word, word) for word in (candidate.component * with_component, backend, recipe)
    ]
    text = "_".join([*words, suffix]).lower()
    return "_".join("".join(char if char.isalnum() else " " for char in text).split())


def _rejected_row(task: str, row: ReportRow) -> Sequence[CellValue]:
    trial = row.trial
    return (task, trial.candidate.component, row.name, trial.status, row.reason, trial.log, trial.reproduce)


def _environment_facts(report: Report) -> Mapping[str, CellValue]:
    machine, bounds = report.machine, describe_bounds(report.bounds)
    chosen = {
        f"chosen: {name}": row.name
        for name in report_components(report)
        if (row := baseline_and_chosen(report, name)[1])
    }
    baselines = {
        f"baseline: {name}": row.name
        for name in report_components(report)
        if (row := baseline_and_chosen(report, name)[0])
    }
    summary = summarise_report(report)
    return {
        "result": summary.headline,
        "about the result": " ".join([summary.price, *summary.sentences]).strip(),
        **{f"warning {number}": warning for number, warning in enumerate(summary.warnings, 1)},
        "source": report.source,
        "goal": report.goal,
        "bounds": "; ".join(bounds) or "none",
        "started (UTC)": report.started,
        "took (s)": report.seconds,
        "budget (s)": report.budget,
        "finished": "yes" if report.finished else "no: it was interrupted",
        "processor": machine.processor,
        "cores": machine.cores,
        "memory (GB)": None if machine.memory is None else machine.memory / (1 << 30),
        "instructions": " ".join(machine.instructions),
        "system": machine.system,
        "python": machine.python,
        "fingerprint": report.fingerprint,
        **{f"version: {name}": version for name, version in report.versions.items()},
        "load average at the start": report.load[0],
        "load average at the end": report.load[1],
        "price of an hour": report.price,
        "currency": report.currency if report.price is not None else None,
        **baselines,
        **chosen,
        **{f"probed with: {name}": note for name, note in report.probes.items()},
    }


def _fill_sheet(
    sheet: "Worksheet",
    headings: Sequence[str],
    lines: Iterable[Sequence[CellValue]],
    number_formats: Sequence[str] = (),
) -> None:
    for column, heading in enumerate(headings, 1):
        sheet.cell(1, column, heading)
    _set_bold(sheet[1])
    for number, line in enumerate(lines, 2):
        for column, value in enumerate(line, 1):
            cell = sheet.cell(number, column)
            _set_cell(cell, value)
            if number_formats:
                cell.number_format = number_formats[column - 1]
    sheet.freeze_panes = "B2"
    get_column_letter = require_extra("openpyxl.utils").get_column_letter
    for cells in sheet.iter_cols():
        longest = max(len(str(cell.value)) for cell in cells if cell.value is not None)
        sheet.column_dimensions[get_column_letter(cells[0].column)].width = min(longest + 2, _MAX_WIDTH)


def _set_cell(cell: "Cell | MergedCell", value: CellValue) -> None:
    if not isinstance(value, str):
        cell.value = value
        return
    cell.value = text = printable(value)
    # The data type "s" stores the text as a string, even if the text begins like a formula. `quotePrefix` keeps the
    # string from becoming a formula when a user edits the cell.
    cell.data_type = "s"
    cell.quotePrefix = text[:1] in ("=", "+", "-", "@")


def _set_bold(cells: Iterable["Cell | MergedCell"]) -> None:
    font = require_extra("openpyxl.styles").Font(bold=True)
    for cell in cells:
        cell.font = font
