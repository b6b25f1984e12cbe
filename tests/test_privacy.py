"""What commands write and send in an empty home: what docs/privacy.md names, and nothing of the libraries beneath."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.privacy import REPORTER, SWITCHES, switch_off_telemetry
from tests.serve.running import running_server

TOLD = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text(encoding="utf-8")
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
"""All that commands see of the environment: some libraries report nothing where a variable tells of tests or CI."""
ALLOWED = {
    ".cache/stillhouse/compiled/*/*.blob": "stillhouse/compiled",
    ".cache/stillhouse/choices/*": "stillhouse/choices",
    "here/*.png": "--out",
    "here/stillhouse-data/*": "stillhouse-data",
}
"""Files that may be written, with how the page names each."""
LIBRARIES = """
import json, stillhouse, nncf
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from nncf.telemetry.wrapper import telemetry
from openvino.tools import ovc
print(json.dumps([type(telemetry).__name__, type(ovc.telemetry).__module__, HF_HUB_DISABLE_TELEMETRY]))
"""


@dataclass(frozen=True)
class Seen:
    """What was written below the home, what libraries said, and whether a process asked the proxy for a connection."""

    files: list[str]
    said: list[Any]
    has_connected: bool


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    home = tmp_path_factory.mktemp("home")
    here = home / "here"
    here.mkdir()

    def python(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with socket.create_server(("127.0.0.1", 0)) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - set(KEPT):
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("no_proxy", "127.0.0.1")
        for scheme in ("http", "https", "all"):
            patch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        python("-m", "stillhouse", "doctor")
        for number, backend in enumerate((("--backend", "onnxruntime"), ("--backend", "openvino"), ())):
            one = ("--steps", "2", "--out", f"{number}.png")
            python("-m", "stillhouse", "generate", "a cross", *one, *backend)
        with running_server("free=shapes", "--backend", "onnxruntime", cwd=here) as server:
            asked = {"prompt": "a cross", "steps": 2}
            assert server.send("POST", "/v1/images/generations", asked)[0] == 200
            assert server.stop() == 0
        said = json.loads(python("-c", LIBRARIES).splitlines()[-1]) if find_spec("nncf") else []
        proxy.settimeout(0)
        try:
            proxy.accept()[0].close()
        except BlockingIOError:
            has_connected = False
        else:
            has_connected = True
    files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return Seen(files, said, has_connected)


def test_nothing_is_written_but_what_is_told(seen: Seen) -> None:
    assert [file for file in seen.files if not any(fnmatch(file, pattern) for pattern in ALLOWED)] == []


@pytest.mark.parametrize(("pattern", "name"), ALLOWED.items())
def test_what_is_told_is_written(seen: Seen, pattern: str, name: str) -> None:
    assert [file for file in seen.files if fnmatch(file, pattern)]
    assert f"{name}`" in TOLD


def test_nothing_is_sent(seen: Seen) -> None:
    assert not seen.has_connected


def test_libraries_see_that_telemetry_is_off(seen: Seen) -> None:
    if not seen.said:
        pytest.skip("nncf is not installed")
    assert seen.said == ["MagicMock", "openvino.tools.ovc.telemetry_stub", True]


@pytest.mark.parametrize("switch", [*(f"{name}={value}" for name, value in SWITCHES.items()), REPORTER])
def test_every_switch_is_told(switch: str) -> None:
    assert switch in TOLD


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process as it is before Stillhouse is imported."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    for name in (REPORTER, "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


def test_what_a_user_has_chosen_stays(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("ORT_DISABLE_TELEMETRY", "0")
    fresh.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    chosen: Any = SimpleNamespace()
    fresh.setitem(sys.modules, REPORTER, chosen)
    switch_off_telemetry()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")
    assert sys.modules[REPORTER] is chosen


def test_a_runtime_that_was_imported_before_is_told_to_stop(fresh: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []
    runtime = SimpleNamespace(disable_telemetry_events=lambda: stopped.append(True))
    fresh.setitem(sys.modules, "onnxruntime", runtime)
    switch_off_telemetry()
    assert stopped == [True]
    with pytest.raises(ImportError, match=REPORTER):
        __import__(REPORTER)
