"""What a runtime raises is told as ours, with what helps where that is known."""

from pathlib import Path

import pytest

from stillhouse.backends.runtime import first_error_line, translate_errors
from stillhouse.errors import BackendFailed


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried to allocate 20.00 GiB", "OOM: Out of Memory in arena"])
def test_too_little_memory_is_told_with_what_takes_less(error: str) -> None:
    with (
        pytest.raises(
            BackendFailed, match="could not run model.onnx: .*; use smaller pictures, .*, or offload the weights"
        ),
        translate_errors("torch", Path("model.onnx"), "run"),
    ):
        raise RuntimeError(error)


def test_other_failures_are_told_by_their_first_useful_line() -> None:
    with pytest.raises(BackendFailed) as caught, translate_errors("torch", Path("model.onnx"), "open"):
        raise ValueError("no such layer\nand a long explanation")
    assert str(caught.value) == "torch could not open model.onnx: no such layer"


def test_openvinos_lists_of_failed_operations_are_told_by_the_first_cause() -> None:
    lines = [
        "Exception from src/inference/src/cpp/core.cpp:84:",
        "Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:",
        "FrontEnd API failed with OpConversionFailure:",
        "Model wasn't fully converted. Failed operations detailed log:",
        "-- Conv-16 with a message:",
        "While validating ONNX node '<Node(Conv): y>': Check 'rank().is_static()' failed at src/op/conv.cpp:38:",
        "FrontEnd API failed with GeneralFailure:",
        "The input data tensor's rank has to be known (static)",
    ]
    assert first_error_line("\n".join(lines)) == lines[-1]
