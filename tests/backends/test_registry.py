"""Backends by name: opened when asked for, and described for `stillhouse doctor`."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stillhouse
from stillhouse.backends import backends, open_runner
from stillhouse.errors import InvalidRequest, RuntimeMissing
from tests.backends.networks import BACKENDS, unet, write_model


def test_importing_the_room_imports_no_runtime() -> None:
    program = "import sys, stillhouse.backends, stillhouse.backends.graph; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "openvino", "onnx", "torch", "tensorrt", "safetensors"} & set(done.stdout.split())


def test_an_unknown_backend_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no backend 'OpenVino'; allowed: .*; did you mean 'openvino'"):
        open_runner(tmp_path / "model.onnx", "OpenVino")


def test_every_known_backend_has_a_row() -> None:
    rows = {row.name: row for row in backends()}
    assert list(rows) == ["onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"]
    for name in (*BACKENDS, "torch"):
        row = rows[name]
        assert row.version and row.reason is None
        assert "CPU" in map(str.upper, row.devices)
        assert row.precisions[0] == "f32"
    assert all(row.install.startswith("pip install ") for row in rows.values())
    assert all(row.reason for row in rows.values() if row.version is None)


def test_torch_is_described_without_being_imported() -> None:
    program = "import sys; from stillhouse.backends import backends; backends(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("torch", "the package torch is not installed"),
        ("diffusers", "the backend needs diffusers: pip install 'stillhouse[train]'"),
    ],
)
def test_torch_is_ready_with_all_that_it_needs_only(package: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = Path(stillhouse.__file__).parent / "shapes/weights/unet/model.onnx"
    monkeypatch.setitem(sys.modules, package, None)
    row = next(row for row in backends() if row.name == "torch")
    assert (row.reason, row.devices, row.precisions) == (reason, (), ())
    with pytest.raises(RuntimeMissing, match=rf"torch cannot be used here without {package}; pip install .*\[train\]"):
        open_runner(unet, "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_runtime_costs_a_reason_and_the_line_that_installs_it(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(RuntimeMissing, match=f"{backend} cannot be used here.*; pip install {backend}"):
        open_runner(graph, backend)
    row = next(row for row in backends() if row.name == backend)
    assert row.reason and not row.devices and not row.precisions


@pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
def test_a_broken_runtime_is_a_row_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backend, ModuleType(backend))
    row = next(row for row in backends() if row.name == backend)
    assert row.version and row.reason and row.reason.startswith("it is installed but broken: ")
