"""Parts of the benchmark, each in a process of its own; what one has written down is there, however it ends."""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OF_RECORD = ("machine", "versions", "seconds")
"""What `record` writes beside what was measured, and what counts for one part only."""


def run_part(part: str, command: Sequence[str], results: Path, limit: float) -> dict[str, Any]:
    """What a command measured.

    Args:
        part: its name.
        command: writes a document to `results` after each row.
        results: file.
        limit: seconds after which it is killed.

    Returns:
        the document, as far as it came; under `failed` why it came no further.
    """
    reason = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            code, said = done.returncode, done.stderr.strip().splitlines()
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            reason = ": ".join([how, *said[-1:]])
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {limit:.0f} s"
    told = json.loads(results.read_text()) if results.exists() else {}
    document: dict[str, Any] = {name: value for name, value in told.items() if name not in _OF_RECORD}
    if reason:
        document["failed"] = {**document.get("failed", {}), part: reason}
    return document


def merge_piece(document: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece: lists to lists, reasons to reasons; the GPU is the first one's."""
    for name, value in piece.items():
        if isinstance(value, list):
            document[name] = [*document.get(name, ()), *value]
        elif name == "failed":
            document[name] = {**document.get(name, {}), **value}
        elif name == "gpu":
            document.setdefault(name, value)
        else:
            document[name] = value
