"""`stillhouse accelerate`, `choose` and `check` on a small ONNX file; every mistake is explained, nothing is lost."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from openpyxl import load_workbook

from stillhouse.accelerate.records.report import read_report
from stillhouse.accelerate.selection.gain import beats_baseline
from stillhouse.accelerate.workspace import lock_directory
from stillhouse.cli import main
from stillhouse.cli.accelerate import parse_batch_sizes, parse_device, parse_named_shape, resolve_config_device
from stillhouse.cli.arguments import byte_size, duration
from stillhouse.errors import InvalidRequest
from stillhouse.gpu import Gpu
from stillhouse.pipelines.network import read_network
from tests.accelerate.networks import detector, external
from tests.cli.conftest import Refused

CONFIG = """
device: cpu
input:
  {name}:
    min_shape: {shape}
    max_shape: {shape}
    use_shape: {shape}
precision: [f32]
iterations: 5
"""
SHAPE = "[1, 3, 64, 64]"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Auto-Acceleration's folders, swept with its config."""
    root = tmp_path_factory.mktemp("layout")
    for folder in ("input/config", "input/model"):
        (root / folder).mkdir(parents=True)
    detector(root / "input/model/detector.onnx")
    name = _first_input(root / "input/model/detector.onnx")
    (root / "input/config/config.yml").write_text(CONFIG.format(name=name, shape=SHAPE))
    assert main(["accelerate", "--config", str(root / "input/config/config.yml"), "--engine", "onnxruntime"]) == 0
    return root


def _first_input(graph: Path) -> str:
    from stillhouse.backends.signature import read_signature

    return next(iter(read_signature(graph).inputs))


def test_the_old_folders_give_the_old_sheet_and_more(swept: Path) -> None:
    sheet = load_workbook(swept / "output" / "summary.xlsx")["Sheet1"]
    header, *rows = sheet.iter_rows(values_only=True)
    assert header[:4] == ("task", "file size(MB)", "throughput(samples/second)", "mae")
    assert rows[0][0] == "onnx"
    assert all(isinstance(value, int | float) for value in rows[0][1:4])
    assert (swept / "output" / "report.html").read_text().startswith("<!doctype html>")


def test_choosing_again_measures_nothing(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_report(swept / "output")
    assert main(["choose", str(swept / "output"), "--goal", "memory"]) == 0
    after = read_report(swept / "output")
    assert [trial.seconds for trial in after.trials] == [trial.seconds for trial in before.trials]
    assert after.goal == "memory"
    baseline = after.trial("network", after.baselines["network"])
    smaller = [t for t in after.trials if t.status == "accepted" and beats_baseline(t, baseline, "memory")]
    minimum = min((t.peak_bytes for t in smaller if t.peak_bytes), default=baseline.peak_bytes)
    assert after.trial("network", after.chosen["network"]).peak_bytes == minimum
    assert read_network(swept / "output").component.backend == "onnxruntime"
    capsys.readouterr()


def test_choosing_waits_for_nobody(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It rewrote the report and the manifest of a directory in which another run was measuring."""
    before = (swept / "output" / "report.json").read_bytes()
    with lock_directory(swept / "output"):
        assert main(["choose", str(swept / "output"), "--goal", "latency"]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert (swept / "output" / "report.json").read_bytes() == before


def test_a_check_passes_where_nothing_changed(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(swept / "output")]) in (0, 1)  # a busy machine may be slower than the interval
    assert "network: onnxruntime" in capsys.readouterr().out


def test_a_check_fails_where_the_bound_is_missed(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from stillhouse.accelerate.records.report import Bounds, write_report

    report = read_report(swept / "output")
    write_report(swept / "output", replace(report, bounds=Bounds(max_memory=1)))
    assert main(["check", str(swept / "output")]) == 1
    write_report(swept / "output", report)
    assert "above the" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message", "allowed"),
    [
        ("", "no source", "SOURCE -o DIR"),
        ("model.onnx", "no source or no output directory", "SOURCE -o DIR"),
        ("none.onnx -o out", "there is no file none.onnx", None),
        ("shape -o out", "'shape'", "shapes"),
        ("model.onnx -o file.txt", "file.txt is a file", "empty directory"),
        ("model.onnx -o full", "is not empty", "empty directory"),
        ("model.onnx -o file.txt/out", "cannot be written", "can be written"),
        ("broken.onnx -o out", "broken.onnx is no ONNX graph", None),
        ("lost.onnx -o out", "is missing", None),
        ("model.onnx -o out --config none.yml", "none.yml", None),
        ("model.onnx -o out --config wrong_name.yml", "imags", "images"),
        ("model.onnx -o out --config wrong_rank.yml", "images", None),
        ("model.onnx -o out --config upside_down.yml", "min_shape", None),
        ("model.onnx -o out --inputs none.npz", "none.npz", None),
        ("model.onnx -o out --inputs file.txt", "file.txt", None),
        ("model.onnx -o out --inputs full --pixels 0..1", "full contains no pictures", ".png"),
        ("model.onnx -o out --inputs full --pixels 0-1", "--pixels 0-1 was given for", "0..1, 0..255, -1..1, imagenet"),
        ("model.onnx -o out --inputs file.npz --pixels 0..1", "file.npz is no folder of pictures", "--inputs FOLDER"),
        ("model.onnx -o out --pixels 0..1", "--pixels 0..1 was given without --inputs", "--inputs FOLDER"),
        ("model.onnx -o out --shape images=1x3", "images", None),
        ("model.onnx -o out --shape images=1x3x0x64", "images", "[batch, 3, 64, 64]"),
        ("model.onnx -o out --shape other=1x3", "other", "images"),
        (
            "model.onnx -o out --rows 2,4",
            "--rows was given, but the source model.onnx is a single ONNX file",
            "the denoiser of a pipeline",
        ),
        ("model.onnx -o out --shape wide", "'wide'", "NAME=1x3x224x224"),
        ("model.onnx -o out --budget soon", "'soon'", "10m"),
        ("model.onnx -o out --student nothing", "no model 'nothing'", "shapes"),
        (
            "model.onnx -o out --student shapes",
            "--student shapes was given, but the source model.onnx is a single ONNX file",
            "whole pipelines",
        ),
        ("model.onnx -o out --max-memory much", "'much'", "4GiB"),
        ("model.onnx -o out --goal beauty", "beauty", "latency"),
    ],
)
def test_a_mistake_is_explained(here: Path, refused: Refused, argv: str, message: str, allowed: str | None) -> None:
    detector(here / "model.onnx")
    (here / "broken.onnx").write_bytes((here / "model.onnx").read_bytes()[:200])
    for file in external(here / "lost.onnx").parent.glob("lost.onnx?*"):
        file.unlink()
    (here / "file.txt").write_text("no npz")
    (here / "full").mkdir()
    (here / "full" / "letters.txt").touch()
    name = _first_input(here / "model.onnx")
    assert name == "images"
    (here / "wrong_name.yml").write_text(CONFIG.format(name="imags", shape=SHAPE))
    (here / "wrong_rank.yml").write_text(CONFIG.format(name=name, shape="[3, 64, 64]"))
    upside_down = CONFIG.format(name=name, shape=SHAPE).replace("min_shape: [1", "min_shape: [2")
    (here / "upside_down.yml").write_text(upside_down)
    output = refused("accelerate", *argv.split())
    assert message in output
    assert allowed is None or allowed in output


@pytest.mark.parametrize("command", ["choose", "check"])
def test_a_directory_without_a_report_is_refused(refused: Refused, command: str) -> None:
    assert "contains no report.json" in refused(command, ".")


def test_units() -> None:
    assert [duration(text) for text in ("90", "90s", "1.5m", "1h")] == [90.0, 90.0, 90.0, 3600.0]
    assert [byte_size(text) for text in ("1000", "4GiB", "500 MiB", "2GB")] == [1000, 4 << 30, 500 << 20, 2 * 10**9]
    assert parse_named_shape("a=b=1x2") == ("a=b", (1, 2))
    assert parse_named_shape("past=1x4x0x16") == ("past", (1, 4, 0, 16))
    assert parse_batch_sizes("16,4") == (1, 2, 4, 16)
    for wrong in ("0,2", "2,", "2-4"):
        with pytest.raises(ArgumentTypeError, match="allowed: batch sizes from 1 to 9999"):
            parse_batch_sizes(wrong)
    with pytest.raises(ArgumentTypeError, match="allowed: auto, cpu, gpu, or the index of a GPU"):
        parse_device("tpu")


def test_a_config_names_a_gpu_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Gpu(f"NVIDIA H{number}00", 80 << 30, "9.0") for number in (1, 2))
    monkeypatch.setattr("stillhouse.cli.accelerate.find_gpus", lambda: gpus)
    monkeypatch.setattr("stillhouse.cli.accelerate.no_gpu_reason", lambda: None)
    assert [resolve_config_device(device) for device in ("auto", "cpu", "gpu", 0, 1)] == [
        "auto",
        "cpu",
        "cuda",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(InvalidRequest, match=r"there is no GPU cuda:2 among cuda:0 \(NVIDIA H100\), .*; allowed: auto"):
        resolve_config_device(2)


def test_a_gpu_that_a_config_names_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.cli.accelerate.no_gpu_reason", lambda: "the driver finds no GPU")
    with pytest.warns(UserWarning, match="requests device 3, but the driver finds no GPU: measuring on the CPU"):
        assert resolve_config_device(3) == "auto"


@pytest.mark.parametrize("device", ["3", "cuda:1", "gpu"])
def test_a_gpu_that_a_flag_names_must_be_there(
    device: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("stillhouse.cli.accelerate.no_gpu_reason", lambda: "the driver finds no GPU")
    output = refused("accelerate", "shapes", "-o", str(tmp_path / "out"), "--device", device)
    assert "but the driver finds no GPU" in output and "allowed: auto, cpu" in output
    assert not (tmp_path / "out").exists()
