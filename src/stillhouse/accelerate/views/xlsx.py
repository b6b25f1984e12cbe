"""The report as a spreadsheet: Auto-Acceleration's four columns first, so that its users find what they know."""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.views.columns import COLUMNS, Value
from stillhouse.accelerate.views.formatting import plain, promises
from stillhouse.accelerate.views.rows import Row, components, marked, rows
from stillhouse.html.extra import extra
from stillhouse.images.png import write_file

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell, MergedCell
    from openpyxl.worksheet.worksheet import Worksheet

_WIDEST = 60
_TASK = ("task", "what was measured; `onnx` is the model as it was given")
# As Auto-Acceleration names its rows: by its files, with the name of the model replaced.
_SPELLED = {"onnxruntime": "onnx", "f32": "fp32", "f16": "fp16"}


def write_summary(report: Report, path: Path) -> None:
    """Write every candidate into `Sheet1`, what was measured how into `environment`, the reasons into `rejected`.

    Figures are numbers, as exact as they were measured; only their format rounds. Words are never formulas.

    Raises:
        InvalidRequest: it cannot be written there.
        RuntimeMissing: openpyxl is not installed.
    """
    book = extra("openpyxl").Workbook()
    found = [row for component in components(report) for row in _baseline_first(report, component)]
    tasks = _tasks([row.trial.candidate for row in found])

    sheet = book.active
    sheet.title = "Sheet1"
    lines = [[task, *(column.value(row) for column in COLUMNS)] for task, row in zip(tasks, found, strict=True)]
    _fill(sheet, [_TASK[0], *(column.heading for column in COLUMNS)], lines, ["@", *(one.layout for one in COLUMNS)])
    for number, row in enumerate(found, 2):
        if row.chosen:
            _embolden(sheet[number])

    meanings = [_TASK, *((column.heading, column.meaning) for column in COLUMNS)]
    _fill(book.create_sheet("environment"), ["name", "value"], [*_facts(report).items(), ("", ""), *meanings])

    lost = [_reason(task, row) for task, row in zip(tasks, found, strict=True) if not row.accepted]
    _fill(
        book.create_sheet("rejected"), ["task", "component", "candidate", "status", "reason", "log", "reproduce"], lost
    )

    file = BytesIO()
    book.save(file)
    write_file(path, file.getvalue())


def _baseline_first(report: Report, component: str) -> list[Row]:
    """In the order of the plan, as Auto-Acceleration lists the original before what it made of it."""
    order = {trial.candidate.key: place for place, trial in enumerate(report.of(component))}
    return sorted(rows(report, component), key=lambda row: (not row.baseline, order[row.trial.candidate.key]))


def _tasks(candidates: Sequence[Candidate]) -> list[str]:
    """A name for each, Auto-Acceleration's where it has one, and no name twice."""
    several = len({one.component for one in candidates} - {PIPELINE}) > 1
    names: dict[str, None] = {}
    for one in candidates:
        name = _task(one, several or one.component == PIPELINE)
        again = (f"{name}_{number}" for number in count(2))
        names[name if name not in names else next(other for other in again if other not in names)] = None
    return list(names)


def _task(candidate: Candidate, with_component: bool) -> str:
    """Such as onnx, onnx_fp16, openvino_fp32; more words where it is nothing that Auto-Acceleration makes."""
    recipe = "" if (candidate.backend, candidate.recipe) == ("onnxruntime", "f32") else candidate.recipe
    rest = candidate.name.removeprefix(f"{candidate.backend} {candidate.recipe}")
    backend = "" if candidate.component == PIPELINE else candidate.backend
    words = [_SPELLED.get(word, word) for word in (candidate.component * with_component, backend, recipe)]
    letters = "_".join([*words, rest]).lower()
    return "_".join("".join(one if one.isalnum() else " " for one in letters).split())


def _reason(task: str, row: Row) -> Sequence[Value]:
    trial = row.trial
    return (task, trial.candidate.component, row.name, trial.status, row.reason, trial.log, trial.reproduce)


def _facts(report: Report) -> Mapping[str, Value]:
    here, asked = report.machine, promises(report.bounds)
    chosen = {f"chosen: {name}": row.name for name in components(report) if (row := marked(report, name)[1])}
    against = {f"baseline: {name}": row.name for name in components(report) if (row := marked(report, name)[0])}
    return {
        "source": report.source,
        "goal": report.goal,
        "bounds": "; ".join(asked) or "none",
        "started (UTC)": report.started,
        "took (s)": report.seconds,
        "budget (s)": report.budget,
        "finished": "yes" if report.finished else "no: it was cut off",
        "processor": here.processor,
        "cores": here.cores,
        "memory (GB)": None if here.memory is None else here.memory / (1 << 30),
        "instructions": " ".join(here.instructions),
        "system": here.system,
        "python": here.python,
        "fingerprint": report.fingerprint,
        **{f"version: {name}": version for name, version in report.versions.items()},
        "load average at the start": report.load[0],
        "load average at the end": report.load[1],
        "price of an hour": report.price,
        "currency": report.currency if report.price is not None else None,
        **against,
        **chosen,
        **{f"probed with: {name}": words for name, words in report.probes.items()},
    }


def _fill(
    sheet: "Worksheet", headings: Sequence[str], lines: Iterable[Sequence[Value]], layouts: Sequence[str] = ()
) -> None:
    for column, heading in enumerate(headings, 1):
        sheet.cell(1, column, heading)
    _embolden(sheet[1])
    for number, line in enumerate(lines, 2):
        for column, value in enumerate(line, 1):
            cell = sheet.cell(number, column)
            _put(cell, value)
            if layouts:
                cell.number_format = layouts[column - 1]
    sheet.freeze_panes = "B2"
    get_column_letter = extra("openpyxl.utils").get_column_letter
    for cells in sheet.iter_cols():
        longest = max(len(str(cell.value)) for cell in cells if cell.value is not None)
        sheet.column_dimensions[get_column_letter(cells[0].column)].width = min(longest + 2, _WIDEST)


def _put(cell: "Cell | MergedCell", value: Value) -> None:
    if not isinstance(value, str):
        cell.value = value
        return
    cell.value = words = plain(value)
    # Words of others may begin as a formula does. They stay words, when somebody edits the cell, too.
    cell.data_type = "s"
    cell.quotePrefix = words[:1] in ("=", "+", "-", "@")


def _embolden(cells: Iterable["Cell | MergedCell"]) -> None:
    font = extra("openpyxl.styles").Font(bold=True)
    for cell in cells:
        cell.font = font
