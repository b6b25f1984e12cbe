import json
from dataclasses import replace

import pytest

from stillhouse.backends import BackendStatus
from stillhouse.cli import main

READY = BackendStatus("fast", "1.2", ("CPU", "GPU"), ("f32", "bf16"), None, "pip install fast")
MISSING = replace(READY, name="gone", version=None, devices=(), precisions=(), reason="not installed")
BROKEN = replace(MISSING, name="sick", version="0.3", reason="its driver is too old")


@pytest.fixture(autouse=True)
def _backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.cli.doctor.backends", lambda: (READY, MISSING, BROKEN))


def test_every_backend_has_a_row_and_a_missing_one_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["fast"].split() == ["fast", "1.2", "CPU,", "GPU", "f32,", "bf16", "ready"]
    assert rows["gone"].endswith("not installed: pip install fast")
    assert rows["sick"].endswith("its driver is too old")
    assert "cores" in rows["processor"]


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [status["name"] for status in document["backends"]] == ["fast", "gone", "sick"]
    assert document["machine"]["cores"] >= 1
