"""Options of an import, and its progress callback."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called after each network with its name in the source, the number of networks done, and their total number."""


def no_progress(component: str, done: int, total: int) -> None:
    """Do nothing. This is the default callback for the progress of an import."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of an import.

    Args:
        name: name of the pipeline; None: the target directory's name.
        loras: LoRA files to fuse into the weights, each `FILE` or `FILE:WEIGHT`, in this order.
        dtype: dtype of the weights on disk: float32, float16 or bfloat16; None: the dtype in the source.
        backend: backend of all components, until `stillhouse accelerate` chooses others.
        force: replace a pipeline in the target directory.
    """

    name: str | None = None
    loras: tuple[str, ...] = ()
    dtype: str | None = None
    backend: str = "onnxruntime"
    force: bool = False
