"""What a person may say about an import."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called after each component with its name, how many are done, and how many there are."""


def no_progress(component: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a model is imported.

    Args:
        name: what to call the pipeline; None takes the target directory's name.
        loras: LoRA files to fuse, `FILE` or `FILE:WEIGHT`, in this order.
        dtype: float32, float16 or bfloat16 for the weights on disk; None keeps what is stored.
        backend: what runs the networks, until something faster was found.
        force: replace a pipeline that stands in the target directory.
    """

    name: str | None = None
    loras: tuple[str, ...] = ()
    dtype: str | None = None
    backend: str = "onnxruntime"
    force: bool = False
