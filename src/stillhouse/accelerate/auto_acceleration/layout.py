"""The folders of Auto-Acceleration: where a config, its model and the result lie."""

from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import InvalidRequest

_INPUT, _CONFIG, _MODEL, _OUTPUT = "input", "config", "model", "output"
_NAMES = ("config.yml", "config.yaml")
_EXPECTED = "input/config/config.yml, one input/model/*.onnx with its external data beside it, and output"


@dataclass(frozen=True, slots=True)
class ProjectLayout:
    """Where things lie. `config` is None where there is no file, `output` need not exist."""

    config: Path | None
    model: Path
    output: Path


def find_layout(root: Path) -> ProjectLayout:
    """Find the model and the output that belong to a config.

    Args:
        root: a config file, `.../input/config/config.yml`, or the directory that holds `input`.

    Raises:
        InvalidRequest: the folders are not there, or hold no .onnx file, or several.

    >>> find_layout(Path("input/config/config.yml"))  # doctest: +SKIP
    ProjectLayout(config=Path('input/config/config.yml'), model=Path('/x/input/model/unet.onnx'), output=Path('/x/output'))
    """
    if root.is_dir():
        inputs = root / _INPUT
        config = next((found for name in _NAMES if (found := inputs / _CONFIG / name).is_file()), None)
    elif root.is_file():
        inputs, config = root.absolute().parent.parent, root
    else:
        raise InvalidRequest(f"there is no file {root}", allowed=_EXPECTED)
    return ProjectLayout(config, _find_model(inputs / _MODEL), inputs.parent / _OUTPUT)


def _find_model(models: Path) -> Path:
    otherwise = "name the model yourself: stillhouse accelerate MODEL.onnx --config CONFIG.yml -o DIR"
    if not models.is_dir():
        raise InvalidRequest(f"there is no directory {models}", allowed=_EXPECTED, fix=otherwise)
    # A name with a leading dot is what some systems leave beside a file that they have copied.
    found = sorted(one for one in models.glob("*.onnx") if one.is_file() and not one.name.startswith("."))
    if not found:
        raise InvalidRequest(f"{models} holds no .onnx file", allowed=_EXPECTED, fix=otherwise)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise InvalidRequest(f"{models} holds {len(found)} models: {names}", allowed="one", fix=otherwise)
    return found[0]
