"""The folders of an Auto-Acceleration project: `input/config`, `input/model` and `output`."""

from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import InvalidRequest

_INPUT, _CONFIG, _MODEL, _OUTPUT = "input", "config", "model", "output"
_NAMES = ("config.yml", "config.yaml")
_EXPECTED = "input/config/config.yml, one input/model/*.onnx with its external data in the same folder, and output"


@dataclass(frozen=True, slots=True)
class ProjectLayout:
    """Paths of an Auto-Acceleration project.

    Args:
        config: the config file; None where the project has none.
        model: the .onnx file.
        output: directory for results, which may not exist yet.
    """

    config: Path | None
    model: Path
    output: Path


def find_layout(root: Path) -> ProjectLayout:
    """Return the paths of an Auto-Acceleration project: config file, model and output directory.

    Args:
        root: the config file, `.../input/config/config.yml`, or the directory that contains the folder `input`.

    Raises:
        InvalidRequest: a folder is missing, or the model folder does not contain exactly one .onnx file.

    >>> find_layout(Path("input/config/config.yml")).output  # doctest: +SKIP
    Path('/x/output')
    """
    if root.is_dir():
        inputs = root / _INPUT
        config = next((path for name in _NAMES if (path := inputs / _CONFIG / name).is_file()), None)
    elif root.is_file():
        inputs, config = root.absolute().parent.parent, root
    else:
        raise InvalidRequest(f"{root} does not exist", allowed=f"a config file, or a directory with {_EXPECTED}")
    return ProjectLayout(config, _find_model(inputs / _MODEL), inputs.parent / _OUTPUT)


def _find_model(models: Path) -> Path:
    name_the_model = "pass the model explicitly: stillhouse accelerate MODEL.onnx --config CONFIG.yml -o DIR"
    if not models.is_dir():
        raise InvalidRequest(
            f"the directory {models} does not exist", allowed=f"a project with {_EXPECTED}", fix=name_the_model
        )
    # Files with a leading dot are left out, because macOS adds a file `._NAME`, which is no model, to a copied file.
    paths = sorted(path for path in models.glob("*.onnx") if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise InvalidRequest(
            f"{models} contains no .onnx file", allowed=f"a project with {_EXPECTED}", fix=name_the_model
        )
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise InvalidRequest(
            f"{models} contains {len(paths)} models: {names}", allowed="exactly one model", fix=name_the_model
        )
    return paths[0]
