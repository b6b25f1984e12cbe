"""All networks of `benchmarks.real_models`."""

from benchmarks.real_models.reactions import REACTIONS
from benchmarks.real_models.real_model import RealModel
from benchmarks.real_models.sounds import SOUNDS
from benchmarks.real_models.texts import TEXTS
from benchmarks.real_models.vision import VISION

MODELS: tuple[RealModel, ...] = VISION + SOUNDS + TEXTS + REACTIONS


def find_model(name: str) -> RealModel:
    """Return the network of a name.

    Raises:
        KeyError: there is none.
    """
    return {model.name: model for model in MODELS}[name]
