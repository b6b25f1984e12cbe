"""What is told of a stage, for spreadsheets and, where it is installed, for TensorBoard."""

import csv
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from stillhouse.fit.stage import UpdateLog


class TrainingLog:
    """One CSV file a stage, and events in `tensorboard/STAGE`; a second run goes on in the same.

    Args:
        folder: where they are.
        stage: whose.
        writes: only one of several processes does.
    """

    def __init__(self, folder: Path, stage: str, writes: bool = True) -> None:
        self._path, self._writes = folder / f"{stage}.csv", writes
        self._events: Any = None
        if writes and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard" / stage))

    def write(self, update_log: UpdateLog) -> None:
        """One line, and the same as events."""
        if not self._writes:
            return
        fresh = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["update", "loss", "scores"])
            scores = " ".join(f"{name}={value:.4f}" for name, value in update_log.scores.items())
            writer.writerow([update_log.update, f"{update_log.loss:.5f}", scores])
        if self._events is not None:
            for name, value in {"loss": update_log.loss, **update_log.scores}.items():
                self._events.add_scalar(name, value, update_log.update)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
