"""Every kernel becomes machine code of three generations of chips, with no chip here."""

import os
import re
import subprocess
import sys

import pytest

from stillhouse.backends.kernels.compile_targets import CAPABILITIES, KERNELS
from stillhouse.backends.kernels.launch import CompileCase


def specimens() -> list[CompileCase]:
    return [specimen for find in KERNELS.values() for specimen in find()]


def test_every_kernel_comes_in_every_dtype() -> None:
    names = [specimen.name for specimen in specimens()]
    assert len(names) == len(set(names))
    for kernel in KERNELS:
        own = [name for name in names if name.startswith(kernel)]
        assert all(any(dtype in name for name in own) for dtype in ("fp32", "fp16", "bf16"))


def test_each_is_compiled_by_every_configuration_that_is_tried_on_a_gpu() -> None:
    """And by none that would be left out there: a program of LayerNorm holds a thousand elements and more."""
    names = [specimen.name for specimen in specimens()]
    for prefix in (
        "silu fp16, BLOCK 1024, 4 warps",
        "guided_step fp16 previous three rows, BLOCK 1024, 1 warps",
        "group_norm fp32 320",
    ):
        assert any(name.startswith(prefix) for name in names)
    assert not [name for name in names if name.startswith("layer_norm fp16 320,") and "ROWS 1," in name]
    assert len({(one.function, one.warps, *sorted(one.constants.items())) for one in specimens()}) > len(KERNELS) * 3


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_kernel_compiles_for_a_chip_that_is_not_here(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "stillhouse.backends.kernels.compile_targets", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(rf"^sm_{capability} (.+) (\d+)$", done.stdout, re.MULTILINE))
    assert list(found) == [specimen.name for specimen in specimens()]
    assert all(int(length) > 1000 for length in found.values())


def test_where_triton_interprets_nothing_is_compiled() -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "stillhouse.backends.kernels.compile_targets",
        "90",
        "--kernel",
        "silu",
    ]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode != 0 and "start a process without TRITON_INTERPRET" in done.stderr
