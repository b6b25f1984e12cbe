"""Parts of the benchmark in processes of their own. What a part has written is used however it ends."""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OF_RECORD = ("machine", "versions", "seconds")
"""Fields of `write_results` that are not measurements, or count for one part only."""


def run_part(part: str, command: Sequence[str], results: Path, limit: float) -> dict[str, Any]:
    """Run a command and return what it measured.

    Args:
        part: its name.
        command: writes a document to `results` after each row.
        results: the file.
        limit: seconds after which the process is killed.

    Returns:
        The document as far as it was written, with the reason under `failed` where the command failed.
    """
    reason = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            code, errors = done.returncode, done.stderr.strip().splitlines()
            end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            reason = ": ".join([end, *errors[-1:]])
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {limit:.0f} s"
    written = json.loads(results.read_text()) if results.exists() else {}
    document: dict[str, Any] = {name: value for name, value in written.items() if name not in _OF_RECORD}
    if reason:
        document["failed"] = {**document.get("failed", {}), part: reason}
    return document


def merge_piece(document: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece to a document: lists are joined, so are reasons; the GPU of the first piece stays."""
    for name, value in piece.items():
        if isinstance(value, list):
            document[name] = [*document.get(name, ()), *value]
        elif name == "failed":
            document[name] = {**document.get(name, {}), **value}
        elif name == "gpu":
            document.setdefault(name, value)
        else:
            document[name] = value
