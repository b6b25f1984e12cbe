"""Import of other programs' model files as pipeline directories; needs the extra `train`."""

from importlib import import_module
from pathlib import Path

from stillhouse.convert.import_options import ImportOptions, Progress, no_progress
from stillhouse.errors import RuntimeMissing
from stillhouse.pipelines.manifest import Manifest

__all__ = ["ImportOptions", "Progress", "import_model"]

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "onnx")


def import_model(
    source: str | Path, target: Path, options: ImportOptions | None = None, progress: Progress = no_progress
) -> Manifest:
    """Import a diffusers directory or a hub id as a pipeline directory, which appears whole or not at all.

    Args:
        source: a directory with model_index.json, or `owner/name` on the hub.
        target: directory to write, new or empty; with `options.force` it may hold a pipeline, which is replaced.
        options: options of the import; None: the defaults.
        progress: called after each network, see `import_options.Progress`.

    Returns:
        The manifest of the pipeline.

    Raises:
        RuntimeMissing: the extra `train` is not installed.
        UnknownModel: `source` is no existing directory, and no hub id that can be reached.
        ImportFailed: the source is incomplete or of an unsupported architecture, or the target cannot be replaced.

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
