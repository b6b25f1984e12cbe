"""Stillhouse makes diffusion models cheap to serve.

>>> import stillhouse
>>> result = stillhouse.load("shapes").generate("a small red circle", seed=7)  # doctest: +SKIP

The names below are loaded when they are first used, so that importing the package stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.core import ImageRequest, ImageResult
    from stillhouse.diffusion.samplers import SAMPLERS
    from stillhouse.diffusion.trajectory import Trajectory
    from stillhouse.errors import (
        BackendFailed,
        FitFailed,
        ImportFailed,
        InvalidRequest,
        ManifestError,
        NotAllowed,
        PipelineError,
        Refused,
        RuntimeMissing,
        StillhouseError,
        TamperedFile,
        UnknownModel,
        UnsupportedPrecision,
    )
    from stillhouse.models.load import load
    from stillhouse.models.network import open_network
    from stillhouse.models.pipeline import Pipeline
    from stillhouse.models.png import read_mask, read_picture, read_request, write_png

__version__ = "0.1.0"

_HOMES = {
    "ImageRequest": "core",
    "ImageResult": "core",
    "SAMPLERS": "diffusion.samplers",
    "Trajectory": "diffusion.trajectory",
    "load": "models.load",
    "open_network": "models.network",
    "Pipeline": "models.pipeline",
    "read_mask": "models.png",
    "read_picture": "models.png",
    "read_request": "models.png",
    "write_png": "models.png",
}

__all__ = [
    "SAMPLERS",
    "BackendFailed",
    "FitFailed",
    "ImageRequest",
    "ImageResult",
    "ImportFailed",
    "InvalidRequest",
    "ManifestError",
    "NotAllowed",
    "Pipeline",
    "PipelineError",
    "Refused",
    "RuntimeMissing",
    "StillhouseError",
    "TamperedFile",
    "Trajectory",
    "UnknownModel",
    "UnsupportedPrecision",
    "__version__",
    "load",
    "open_network",
    "read_mask",
    "read_picture",
    "read_request",
    "write_png",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
