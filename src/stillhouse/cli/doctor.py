"""`stillhouse doctor`: what this machine can run, and the line that installs what is missing."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict

from stillhouse import __version__
from stillhouse.backends import BackendStatus, backends
from stillhouse.cli.table import table
from stillhouse.gpu import Gpu, no_gpu
from stillhouse.measure.machine import Machine, machine


def declare(parser: ArgumentParser) -> None:
    """The options of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Look, and tell."""
    here, found = machine(), backends()
    if arguments.json:
        told = {"stillhouse": __version__, "machine": asdict(here), "backends": [asdict(status) for status in found]}
        print(json.dumps(told))
    else:
        print(f"{_machine(here)}\n\n{_backends(found)}")
    return 0


def _machine(here: Machine) -> str:
    memory = "unknown" if here.memory is None else f"{here.memory / (1 << 30):.1f} GiB"
    facts = {
        "stillhouse": f"{__version__} on Python {here.python}, {here.system}",
        "processor": f"{here.processor}, {here.cores} cores",
        "memory": memory,
        "instructions": " ".join(here.instructions) or "none of interest",
        "gpu": "; ".join(map(_gpu, here.gpus)) or str(no_gpu()),
    }
    return "\n".join(f"{name:<13} {fact}" for name, fact in facts.items())


def _gpu(one: Gpu) -> str:
    return f"{one.name}, {one.memory / (1 << 30):.0f} GiB, compute capability {one.capability}"


def _backends(found: Sequence[BackendStatus]) -> str:
    rows = [
        [status.name, status.version or "-", _list(status.devices), _list(status.precisions), _state(status)]
        for status in found
    ]
    return table(["backend", "version", "devices", "precisions", "state"], rows)


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or "-"


def _state(status: BackendStatus) -> str:
    if status.reason is None:
        return "ready"
    return status.reason if status.version else f"{status.reason}: {status.install}"
