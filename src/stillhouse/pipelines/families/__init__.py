"""Pipeline families: what differs between Stable Diffusion, SDXL and others while pictures are generated.

A family is one value that implements `base.Family`. It names the inputs of its networks, encodes prompts, chooses the
branches of guidance, turns latents into the denoiser's inputs, and turns outputs into predictions. Nothing here needs
torch.
"""

from importlib.metadata import entry_points

from stillhouse.errors import ManifestError
from stillhouse.pipelines.families.base import Family
from stillhouse.pipelines.families.sdxl import SDXL
from stillhouse.pipelines.families.stable_diffusion import STABLE_DIFFUSION

ENTRY_POINTS = "stillhouse.families"
"""Group of entry points with which other packages add families: each has the family's name and loads a `Family`."""
_FAMILIES: dict[str, Family] = {family.name: family for family in (STABLE_DIFFUSION, SDXL)}


def register_family(family: Family) -> None:
    """Register a pipeline family in this process. An earlier family of the same name is replaced."""
    _FAMILIES[family.name] = family


def find_family(name: str) -> Family:
    """Return the pipeline family with this name, from this package or another installed package.

    Raises:
        ManifestError: no installed package has a family with this name.
    """
    if name not in _FAMILIES:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            register_family(point.load())
    if name not in _FAMILIES:
        raise ManifestError(
            f"the pipeline is of the family {name!r}, which is not installed",
            allowed=", ".join(sorted(_FAMILIES)),
            fix="install the package that adds it, or update stillhouse",
        )
    return _FAMILIES[name]
