"""`stillhouse doctor`: show which backends are available on this machine, and how to install the missing ones."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict

from stillhouse import __version__
from stillhouse.backends import BackendStatus, backends
from stillhouse.cli.table import format_table
from stillhouse.gpu import Gpu, no_gpu_reason
from stillhouse.measure.machine import Machine, read_machine


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse doctor` to its argument parser."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Print the machine's hardware and the status of all backends, as text or as JSON, and return exit code 0."""
    machine, statuses = read_machine(), backends()
    if arguments.json:
        document = {
            "stillhouse": __version__,
            "machine": asdict(machine),
            "backends": [asdict(status) for status in statuses],
        }
        print(json.dumps(document))
    else:
        print(f"{_format_machine(machine)}\n\n{_format_backends(statuses)}")
    return 0


def _format_machine(host: Machine) -> str:
    memory = "unknown" if host.memory is None else f"{host.memory / (1 << 30):.1f} GiB"
    fields = {
        "stillhouse": f"{__version__} on Python {host.python}, {host.system}",
        "processor": f"{host.processor}, {host.cores} cores",
        "memory": memory,
        "instructions": " ".join(host.instructions) or "none of interest",
        "gpu": "; ".join(map(_format_gpu, host.gpus)) or str(no_gpu_reason()),
    }
    return "\n".join(f"{name:<13} {value}" for name, value in fields.items())


def _format_gpu(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.memory / (1 << 30):.0f} GiB, compute capability {gpu.capability}"


def _format_backends(statuses: Sequence[BackendStatus]) -> str:
    rows = [
        [status.name, status.version or "-", _join(status.devices), _join(status.precisions), _format_state(status)]
        for status in statuses
    ]
    return format_table(["backend", "version", "devices", "precisions", "state"], rows)


def _join(words: Sequence[str]) -> str:
    return ", ".join(words) or "-"


def _format_state(status: BackendStatus) -> str:
    if status.reason is None:
        return "ready"
    return status.reason if status.version else f"{status.reason}: {status.install}"
