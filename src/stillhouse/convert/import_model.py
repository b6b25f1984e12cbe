"""Other people's model files made into pipeline directories; this needs the extra `train`."""

from importlib import import_module
from pathlib import Path

from stillhouse.convert.options import ImportOptions, Progress, no_progress
from stillhouse.errors import RuntimeMissing
from stillhouse.pipelines.manifest import Manifest

__all__ = ["ImportOptions", "Progress", "import_model"]

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "onnx")


def import_model(
    source: str | Path, target: Path, options: ImportOptions | None = None, progress: Progress = no_progress
) -> Manifest:
    """Make a pipeline directory of a diffusers directory or a hub id.

    The target appears whole, or not at all.

    Args:
        source: a directory with model_index.json, or `owner/name` on the hub.
        target: directory to write. One that holds a pipeline is replaced with `options.force` only, another never.

    Raises:
        RuntimeMissing: the extra `train` is not installed.
        UnknownModel: no such directory, and no hub id that can be reached.
        ImportFailed: the source is incomplete, or of an architecture that is not known; or the target is taken.

    >>> import_model("my-diffusers-model", Path("my-model"))  # doctest: +SKIP
    """
    for package in NEEDED:
        try:
            import_module(package)
        except ImportError as error:
            fix = "pip install 'stillhouse[train]'"
            raise RuntimeMissing(f"importing a model needs {package}: {error}", fix=fix) from error
    importer = import_module("stillhouse.convert.diffusers")
    manifest: Manifest = importer.import_diffusers(source, target, options or ImportOptions(), progress)
    return manifest
