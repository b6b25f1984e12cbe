"""The page of levers: operations are counted by kind of layer, and tables say what was measured."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import levers
from benchmarks.levers import KINDS, Parts, levers_table, parts_table, peaks_table


def model() -> Any:
    """A convolution of 3x3, a linear layer whose weights are stored in int8, and a product of two activations."""
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([2, 4, 8, 8], np.float32)
    convolved = ops.convolution(x, np.ones((6, 4, 3, 3), np.float32), [1, 1], [1, 1], [1, 1], [1, 1])
    tokens = ops.reshape(convolved, ops.constant(np.array([2, 6, 64])), False)
    weights = ops.multiply(ops.convert(ops.constant(np.ones((5, 64), np.int8)), "f32"), np.float32(0.5))
    linear = ops.matmul(tokens, weights, False, True)
    return openvino.Model([ops.matmul(linear, linear, True, False)], [x])


def test_parts_of_a_network_add_up(tmp_path: Path, monkeypatch: Any) -> None:
    import openvino

    openvino.save_model(model(), tmp_path / "model.xml")
    lever = levers.Lever("denoiser")
    monkeypatch.setattr(levers, "graph_of", lambda lever: tmp_path / "model.xml")
    name = openvino.Core().read_model(tmp_path / "model.xml").inputs[0].get_any_name()
    monkeypatch.setattr(levers, "feeds_of", lambda lever: {name: np.zeros((2, 4, 8, 8), np.float32)})
    parts = levers.measure_parts(lever)
    assert list(parts) == list(KINDS)
    assert parts["convolutions"]["operations"] == 2 * (2 * 6 * 8 * 8) * (4 * 3 * 3)
    assert parts["convolutions"]["seconds"] > 0 and parts["everything else"]["operations"] == 0


def test_tables_show_rates_shares_and_intervals() -> None:
    parts = Parts(Counter({"convolutions": 4e9}), Counter({"convolutions": 2.0, "everything else": 2.0}))
    results = {
        "peaks": {"f32": {"matrix product": 1.0}, "int8": {"matrix product": 4.0}},
        "parts": {
            "bf16": {kind: {"operations": parts.operations[kind], "seconds": parts.seconds[kind]} for kind in KINDS}
        },
        "levers": [
            {
                "lever": "bf16",
                "price": "none",
                "seconds": {"median": 1.5},
                "ratio": {"value": 2.0, "low": 1.9, "high": 2.1},
                "sqnr": 33.333,
            }
        ],
    }
    assert "| int8 | 4 |" in peaks_table(results)
    assert "| bf16 | 2.00 s, 2 | 0.00 s | 0.00 s | 2.00 s | 4.00 s, 1 | 25% |" in parts_table(results)
    assert "| bf16 | 1.50 | 2.00x (1.90 to 2.10) | 33.3 dB | none |" in levers_table(results)
