"""Stillhouse makes diffusion models cheap to serve.

>>> import stillhouse
>>> result = stillhouse.load("shapes").generate("a small red circle", seed=7)  # doctest: +SKIP

Modules of the public names are imported when a name is first used, so that `import stillhouse` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillhouse.privacy import switch_off_telemetry

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
    from stillhouse.images.files import read_mask, read_picture, read_request, write_png
    from stillhouse.pipelines.load import load
    from stillhouse.pipelines.network import open_network
    from stillhouse.pipelines.pipeline import Pipeline

__version__ = "0.1.0"
"""Version of the package."""

_HOMES = {
    "ImageRequest": "core",
    "ImageResult": "core",
    "SAMPLERS": "diffusion.samplers",
    "Trajectory": "diffusion.trajectory",
    "load": "pipelines.load",
    "open_network": "pipelines.network",
    "Pipeline": "pipelines.pipeline",
    "read_mask": "images.files",
    "read_picture": "images.files",
    "read_request": "images.files",
    "write_png": "images.files",
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


switch_off_telemetry()
