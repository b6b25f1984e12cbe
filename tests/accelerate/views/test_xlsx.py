"""The spreadsheet: Auto-Acceleration's columns first, and numbers stored as numbers."""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import printable
from stillhouse.accelerate.views.report_page import render_report
from stillhouse.accelerate.views.summary import headline
from stillhouse.accelerate.views.xlsx import write_spreadsheet
from stillhouse.errors import InvalidRequest, RuntimeMissing
from tests.accelerate.views.sweeps import HOSTILE, MIB, PROMPTS, decoder_trials, network_report, pipeline_report

THEIRS = ["task", "file size(MB)", "throughput(samples/second)", "mae"]
OURS = (
    *("status", "reason", "component", "executed precision", "integer weights", "backend"),
    *("latency p50 (ms)", "latency p95 (ms)"),
    *("speed-up", "speed-up low", "speed-up high", "batch", "SQNR (dB)", "cosine", "max abs error", "non-finite"),
    *("PSNR (dB)", "SSIM", "score", "peak memory (MB)", "peak GPU memory (MB)", "build (s)"),
    *("open (s)", "artifact"),
)
WORDS = {"task", "status", "reason", "component", "executed precision", "backend", "artifact", "candidate", "chosen"}


def book(sweep: Report, tmp_path: Path) -> Workbook:
    write_spreadsheet(sweep, tmp_path / "summary.xlsx")
    return load_workbook(tmp_path / "summary.xlsx")


def lines(book: Workbook, sheet: str = "Sheet1") -> list[dict[str, Any]]:
    headings, *rest = book[sheet].iter_rows(values_only=True)
    return [dict(zip(map(str, headings), line, strict=True)) for line in rest]


def by_task(book: Workbook) -> dict[str, dict[str, Any]]:
    return {line["task"]: line for line in lines(book)}


def only(trials: Sequence[Trial]) -> Report:
    return replace(pipeline_report(), trials=tuple(trials), baselines={}, chosen={})


def test_their_four_columns_come_first_in_the_sheet_that_they_know(tmp_path: Path) -> None:
    summary = book(network_report(), tmp_path)
    assert summary.sheetnames == ["Sheet1", "environment", "rejected", "use it"]
    headings = [cell.value for cell in summary["Sheet1"][1]]
    assert headings[:4] == THEIRS
    assert headings[4 : 4 + len(OURS)] == list(OURS)
    assert len(set(headings)) == len(headings)


def test_their_row_names_where_they_have_one_and_the_original_first(tmp_path: Path) -> None:
    rows = by_task(book(network_report(), tmp_path))
    assert next(iter(rows)) == "onnx"
    for task, candidate in {
        "onnx": "onnxruntime f32",
        "onnx_fp16": "onnxruntime f16",
        "openvino_fp32": "openvino f32",
        "openvino_fp16": "openvino f16",
        "tensorrt_fp16": "tensorrt f16",
        "openvino_fp32_bf16": "openvino f32, bf16",
        "openvino_int8_static_4_nodes_in_float": "openvino int8-static, 4 nodes in float",
    }.items():
        assert rows[task]["candidate"] == candidate


def test_several_networks_are_told_apart_by_their_names(tmp_path: Path) -> None:
    rows = by_task(book(pipeline_report(), tmp_path))
    assert {"denoiser_onnx", "decoder_onnx", "pipeline_sampling_networks_baseline"} <= rows.keys()
    assert len(rows) == len(pipeline_report().trials)


@given(
    st.lists(
        st.builds(
            Candidate,
            component=st.sampled_from(["a", "a_b"]),
            backend=st.sampled_from(["onnxruntime", "openvino", "b_openvino"]),
            recipe=st.sampled_from(["f32", "f16", "int8-static"]),
            options=st.dictionaries(st.sampled_from(["x", "x.", "2"]), st.sampled_from(["", "2", "3"]), max_size=2),
        ),
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_task_has_two_rows(tmp_path: Path, candidates: list[Candidate]) -> None:
    rows = lines(book(only([Trial(candidate, "skipped", "no time") for candidate in candidates]), tmp_path))
    assert len({line["task"] for line in rows}) == len(candidates)


def test_figures_are_exact_numbers_that_only_their_format_rounds(tmp_path: Path) -> None:
    summary = book(network_report(), tmp_path)
    line = by_task(summary)["openvino_fp32_bf16"]
    assert line["file size(MB)"] == 85
    assert line["throughput(samples/second)"] == pytest.approx(1 / 0.0223, rel=1e-12)
    assert line["mae"] == pytest.approx(0.01) and line["max abs error"] == pytest.approx(0.09)
    assert line["latency p50 (ms)"] == pytest.approx(22.3) and line["latency p95 (ms)"] == pytest.approx(26.091)
    assert line["SQNR (dB)"] == 37.1 and line["peak memory (MB)"] == 470
    assert line["speed-up low"] < line["speed-up"] < line["speed-up high"]
    formats = {top.value: cell.number_format for top, cell in zip(*summary["Sheet1"]["A1:Z2"], strict=True)}
    assert formats["file size(MB)"] == formats["throughput(samples/second)"] == "0.00"


def test_every_cell_of_a_figure_is_a_number_or_empty(tmp_path: Path) -> None:
    for line in lines(book(pipeline_report(), tmp_path)):
        for heading, value in line.items():
            assert value is None or isinstance(value, str if heading in WORDS else int | float), heading


def test_samples_a_second_count_the_batch(tmp_path: Path) -> None:
    first, *rest = network_report().trials
    sweep = replace(network_report(), trials=(replace(first, rows=4), *rest))
    line = by_task(book(sweep, tmp_path))["onnx"]
    assert line["batch"] == 4 and line["throughput(samples/second)"] == pytest.approx(4 / 0.096)


def test_the_error_of_the_baseline_is_zero_and_that_of_nan_is_no_number(tmp_path: Path) -> None:
    rows = by_task(book(network_report(), tmp_path))
    assert rows["onnx"]["mae"] == 0
    broken = rows["onnx_int8_static"]
    assert broken["mae"] is None and broken["max abs error"] is None and broken["non-finite"] == 7
    assert broken["reason"] == "7 elements of the output are NaN"
    assert rows["tensorrt_fp16"]["mae"] is None


def test_every_candidate_has_a_row_and_every_one_not_accepted_its_reason(tmp_path: Path) -> None:
    summary = book(pipeline_report(), tmp_path)
    assert len(lines(summary)) == len(pipeline_report().trials)
    rejected = {(line["candidate"], line["status"], line["reason"]) for line in lines(summary, "rejected")}
    assert rejected == {
        (trial.candidate.name, trial.status, trial.reason) for trial in pipeline_report().trials if trial.reason
    }
    assert {line["status"] for line in lines(summary, "rejected")} == {"rejected", "failed", "excluded", "skipped"}


def test_the_choice_of_each_component_is_marked(tmp_path: Path) -> None:
    summary = book(pipeline_report(), tmp_path)
    chosen = {line["component"]: line["candidate"] for line in lines(summary) if line["chosen"] == "yes"}
    assert chosen == {
        name: pipeline_report().trial(name, key).candidate.name for name, key in pipeline_report().chosen.items()
    }


def test_the_environment_tells_the_machine_and_defines_every_column(tmp_path: Path) -> None:
    summary = book(replace(pipeline_report(), price=0.36), tmp_path)
    facts = {line["name"]: line["value"] for line in lines(summary, "environment")}
    assert (facts["processor"], facts["cores"], facts["memory (GB)"]) == ("AMD EPYC", 2, 24)
    assert (facts["version: openvino"], facts["load average at the end"]) == ("2026.4.1", 1.7)
    assert facts["bounds"].startswith("SQNR of at least 20 dB; PSNR of at least 20 dB")
    assert (facts["price of an hour"], facts["currency"], facts["goal"]) == (0.36, "USD", "latency")
    assert facts["probed with: pipeline"] == "48 pictures"
    for cell in summary["Sheet1"][1]:
        assert facts[cell.value], cell.value
    assert "batch size times calls per second" in facts["throughput(samples/second)"]


def test_the_result_and_the_code_that_uses_it_are_there(tmp_path: Path) -> None:
    summary = book(replace(pipeline_report(), warnings=("made-up inputs",)), tmp_path)
    facts = {line["name"]: line["value"] for line in lines(summary, "environment")}
    assert facts["result"] == headline(pipeline_report()) and facts["warning 1"] == "made-up inputs"
    assert "Chosen for the shortest time" in facts["about the result"]
    (code,) = lines(summary, "use it")
    assert code["line"] == f"stillhouse generate --model . '{PROMPTS[0]}'"


def test_where_the_original_wins_its_graph_is_the_artifact(tmp_path: Path) -> None:
    first, *rest = network_report().trials
    graph = replace(first, artifact=None, graph="model.onnx")
    assert by_task(book(replace(network_report(), trials=(graph, *rest)), tmp_path))["onnx"]["artifact"] == "model.onnx"


def test_words_of_strangers_never_become_formulas(tmp_path: Path) -> None:
    summary = book(pipeline_report(), tmp_path)
    assert not [cell for sheet in summary for line in sheet.iter_rows() for cell in line if cell.data_type == "f"]
    line = next(line for line in lines(summary) if HOSTILE in line["candidate"])
    assert line["reason"].startswith(HOSTILE)


@given(st.tuples(st.sampled_from("=+-@\t\r#"), st.text()).map("".join))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_stays_text(tmp_path: Path, text: str) -> None:
    sweep = replace(only([replace(decoder_trials()[2], reason=text, log=text)]), source=text, versions={text: text})
    summary = book(sweep, tmp_path)
    cell = summary["Sheet1"].cell(2, 6)
    assert cell.data_type == "s" or printable(text) == ""
    assert str(cell.value or "").replace("_x005F_", "_") == printable(text).replace("_x005F_", "_")
    assert not [cell for sheet in summary for line in sheet.iter_rows() for cell in line if cell.data_type == "f"]


def test_an_empty_report_has_its_headings(tmp_path: Path) -> None:
    summary = book(only([]), tmp_path)
    assert lines(summary) == lines(summary, "rejected") == []


def test_a_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "summary.xlsx").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_spreadsheet(pipeline_report(), tmp_path / "summary.xlsx")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.xlsx"]


def test_without_openpyxl_the_line_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'stillhouse\[accelerate\]'"):
        write_spreadsheet(pipeline_report(), tmp_path / "summary.xlsx")
    assert not list(tmp_path.iterdir())


def test_integer_weights_are_told_by_type(tmp_path: Path) -> None:
    """Of a graph of int4 weights, convolutions and the last layer stay in int8."""
    sweep = network_report()
    first, *others = sweep.trials
    mixed = replace(first, weight_types={"int4": 40, "int8": 3})
    shown = replace(sweep, trials=(mixed, *others))
    assert {line["integer weights"] for line in lines(book(shown, tmp_path))} == {"40 int4, 3 int8", None}
    assert "weights: 40 int4, 3 int8" in render_report(shown, tmp_path)


def test_no_figure_of_a_trial_is_forgotten() -> None:
    """A new field of Trial needs a column, or an entry in `elsewhere` if only the page shows it."""
    elsewhere = {"census", "first_seconds", "graph", "log", "reproduce", "unproven", "mismatch", "baseline_seconds"}
    shown = {"candidate", "status", "reason", "executed", "fidelity", "pictures", "seconds", "ratio", "batch", "rows"}
    shown |= {"build_seconds", "open_seconds", "peak_bytes", "gpu_bytes", "file_bytes", "artifact", "weight_types"}
    assert {field.name for field in fields(Trial)} == elsewhere | shown
    assert MIB == 2**20
