"""The benchmark of GPUs runs to its end where there is none, and its figures become tables."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tables
from benchmarks.gpu.apart import merge_piece, run_part
from benchmarks.gpu.ladder import FP8, SDXL_VARIANTS, UNET_VARIANTS, UNetVariant
from stillhouse.backends import BackendStatus, torch_candidates
from stillhouse.backends.backend import CandidateContext


def test_everything_runs_on_a_processor_and_becomes_tables() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    kinds = {row["kernel"] for row in document["kernels"]}
    assert {"GEGLU", "GroupNorm + SiLU", "LayerNorm", "sum + LayerNorm", "SiLU", "cast to f32"} < kinds
    assert all(row["error"] < 1e-5 and row["fused"]["share"] > 0 for row in document["kernels"])
    walked = {row["rung"] for row in document["sd15"] if row["seconds"] > 0}
    assert walked == {rung.name for rung in UNET_VARIANTS if not (rung.compiled or rung.graphs)}
    assert "failed" not in document
    assert all(row["sqnr"] > 80 for row in document["sd15"])
    assert all(row["psnr"] > 60 for row in document["pictures"])
    assert [row["component"] for row in document["components"]] == [
        "text encoder",
        "U-Net, an evaluation",
        "decoder",
        "decoder, in tiles of half the side",
    ]
    exported, missing = document["engines"]
    assert exported["sqnr"] > 80 and exported["step"]["runs"] == 1
    assert missing["reason"] == "the package tensorrt is not installed: pip install tensorrt"
    assert len(document["batching"]) == 6 and all(0 <= row["in_time"] <= 1 for row in document["batching"])
    for table, rows in (
        (tables.kernels_table, document["kernels"]),
        (tables.variants_table, [*document["sd15"], *document["engines"]]),
        (tables.components_table, document["components"]),
        (tables.pictures_table, document["pictures"]),
        (tables.batching_table, [*document["curve"], *document["batching"]]),
    ):
        told = table(document)
        assert told.count("\n|") >= len(rows) and "no GPU: only shown to run" in told


def test_what_could_not_be_measured_has_a_row_with_its_reason() -> None:
    gpu = {"gpu": {"name": "A GPU", "driver": "1", "cuda": "13"}, "seconds": 3.0}
    told = {"kernel": "GEGLU", "where": "here", "dtype": "float16", "reason": "RuntimeError: no"}
    assert "RuntimeError: no" in tables.kernels_table({**gpu, "kernels": [told]})
    rung = {"model": "SDXL", "rung": "SDPA", "dtype": "float16", "images": 1, "place": 2, "reason": "the time was up"}
    assert "the time was up" in tables.variants_table({**gpu, "sdxl": [rung]})
    assert "no network" in tables.pictures_table({**gpu, "pictures": [{"way": "f16", "reason": "no network"}]})


@pytest.mark.parametrize(
    ("end", "limit", "reason"),
    [
        ("", 60, None),
        ("raise RuntimeError('no kernel')", 60, "exit code 1: RuntimeError: no kernel"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, f"killed by {signal.Signals.SIGSEGV.name}"),
        ("import signal; signal.pause()", 6, "it did not end within 6 s"),
    ],
)
def test_what_a_part_has_measured_is_kept_however_it_ends(
    end: str, limit: float, reason: str | None, tmp_path: Path
) -> None:
    results = tmp_path / "kernels.json"
    told = {"machine": {}, "seconds": 1.0, "gpu": {"name": "A GPU"}, "kernels": [{"kernel": "GEGLU"}]}
    program = f"import pathlib; pathlib.Path({str(results)!r}).write_text({json.dumps(told)!r})\n{end}"
    found = run_part("kernels", [sys.executable, "-c", program], results, limit)
    assert found == {
        "gpu": {"name": "A GPU"},
        "kernels": [{"kernel": "GEGLU"}],
        **({"failed": {"kernels": reason}} if reason else {}),
    }


def test_a_part_that_has_measured_nothing_is_told_beside_the_others(tmp_path: Path) -> None:
    document: dict[str, Any] = {"gpu": {"name": "A GPU", "driver": "1", "cuda": "13"}, "seconds": 3.0}
    merge_piece(document, run_part("sd15", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "none.json", 60))
    merge_piece(document, {"kernels": [], "failed": {"curve": "RuntimeError: out of memory"}, "gpu": {"name": "other"}})
    assert document["gpu"]["name"] == "A GPU"
    assert document["failed"] == {"sd15": "exit code 3", "curve": "RuntimeError: out of memory"}
    for table in (
        tables.kernels_table,
        tables.variants_table,
        tables.components_table,
        tables.pictures_table,
        tables.batching_table,
    ):
        assert "Of sd15 the rest is missing: exit code 3" in table(document)


@pytest.mark.parametrize("rung", [*SDXL_VARIANTS, FP8], ids=lambda rung: rung.name)
def test_what_wins_on_the_ladder_is_a_candidate(rung: UNetVariant) -> None:
    has = {
        "memory_format": rung.channels_last and "channels_last",
        "kernels": rung.fused and "fused",
        "qkv": rung.fused_qkv and "joined",
        "compile": rung.compiled and "full",
        "graphs": rung.graphs and "cuda",
        "quantize": rung.quantized and "fp8",
        "shapes": (rung.compiled or rung.graphs) and "static",
    }
    wanted = {"device": "cuda", "attention": rung.attention, **{name: value for name, value in has.items() if value}}
    context = CandidateContext("denoiser", "high", BackendStatus("torch", "2", ("cuda:0",), (), None, ""))
    assert wanted in [spec.options for spec in torch_candidates.candidates(context)]
