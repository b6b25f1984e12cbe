"""Write training logs: a CSV file for each trained network, and TensorBoard events where TensorBoard is installed."""

import csv
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from stillhouse.fit.stage import UpdateLog


class TrainingLog:
    """Log of one training in `STAGE.csv` and `tensorboard/STAGE`, which a resumed run continues.

    The object is a context manager that closes the TensorBoard file at the end.

    Args:
        folder: folder of the CSV file and of the folder `tensorboard`.
        stage: name of the training, STAGE in the names of the files.
        writes: whether anything is written; False in all processes except the main process.
    """

    def __init__(self, folder: Path, stage: str, writes: bool = True) -> None:
        self._path, self._writes = folder / f"{stage}.csv", writes
        self._events: Any = None
        if writes and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard" / stage))

    def write(self, update_log: UpdateLog) -> None:
        """Append a row to the CSV file, and to TensorBoard an event for the loss and one for each score."""
        if not self._writes:
            return
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
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
