"""Results of the benchmarks: one JSON file each, with the machine and the versions of packages."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.measure.machine import Machine, installed_versions, read_machine
from stillhouse.validation import convert

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("stillhouse", "numpy", "onnxruntime", "openvino", "torch", "diffusers", "transformers")


def write_results(name: str, measured: Mapping[str, Any]) -> Path:
    """Write `results/NAME.json` atomically, print and return its path."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    document = {"machine": asdict(read_machine()), "versions": installed_versions(_PACKAGES), **measured}
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)
    print(f"wrote {path}")
    return path


def read_results(name: str) -> dict[str, Any]:
    """Read what `write_results` wrote."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def read_earlier(name: str) -> dict[str, Any]:
    """Return the results that this machine wrote, so that a second run goes on; empty where there are none."""
    if not (RESULTS / f"{name}.json").exists():
        return {}
    earlier = read_results(name)
    is_same_machine = convert(Machine, earlier["machine"]).fingerprint() == read_machine().fingerprint()
    return earlier if is_same_machine else {}
