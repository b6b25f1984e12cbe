"""The benchmark of GPUs runs to its end where there is none, and its figures become tables."""

import json
import subprocess
import sys

from benchmarks.gpu import tables
from benchmarks.gpu.ladder import RUNGS


def test_everything_runs_on_a_processor_and_becomes_tables() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    kinds = {row["kernel"] for row in document["kernels"]}
    assert {"GEGLU", "GroupNorm + SiLU", "LayerNorm", "sum + LayerNorm", "SiLU", "cast to f32"} < kinds
    assert all(row["error"] < 1e-5 and row["fused"]["share"] > 0 for row in document["kernels"])
    walked = {row["rung"] for row in document["sd15"] if row["seconds"] > 0}
    assert walked == {rung.name for rung in RUNGS if not (rung.compiled or rung.graphs)}
    assert "failed" not in document
    assert all(row["sqnr"] > 80 for row in document["sd15"])
    assert all(row["psnr"] > 60 for row in document["pictures"])
    assert [row["component"] for row in document["components"]] == ["text encoder", "decoder"]
    assert len(document["batching"]) == 6 and all(0 <= row["in_time"] <= 1 for row in document["batching"])
    for table, rows in (
        (tables.kernels, document["kernels"]),
        (tables.ladder, document["sd15"]),
        (tables.components, document["components"]),
        (tables.pictures, document["pictures"]),
        (tables.batching, [*document["curve"], *document["batching"]]),
    ):
        told = table(document)
        assert told.count("\n|") >= len(rows) and "no GPU: only shown to run" in told


def test_what_could_not_be_measured_has_a_row_with_its_reason() -> None:
    gpu = {"gpu": {"name": "A GPU", "driver": "1", "cuda": "13"}, "seconds": 3.0}
    told = {"kernel": "GEGLU", "where": "here", "dtype": "float16", "reason": "RuntimeError: no"}
    assert "RuntimeError: no" in tables.kernels({**gpu, "kernels": [told]})
    rung = {"model": "SDXL", "rung": "SDPA", "dtype": "float16", "images": 1, "place": 2, "reason": "the time was up"}
    assert "the time was up" in tables.ladder({**gpu, "sdxl": [rung]})
    assert "no network" in tables.pictures({**gpu, "pictures": [{"way": "f16", "reason": "no network"}]})
