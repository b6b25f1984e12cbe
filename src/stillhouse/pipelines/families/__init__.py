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
"""Entry points by which an installed package adds a family: by its name, an object that implements `Family`."""
_FAMILIES: dict[str, Family] = {family.name: family for family in (STABLE_DIFFUSION, SDXL)}


def register_family(family: Family) -> None:
    """Register a family in this process; it replaces a family of the same name."""
    _FAMILIES[family.name] = family


def find_family(name: str) -> Family:
    """Return the family of that name, of this package or of an installed one.

    Raises:
        ManifestError: neither this package nor an installed one has this family.
    """
    if name not in _FAMILIES:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            register_family(point.load())
    if name not in _FAMILIES:
        raise ManifestError(
            f"the pipeline is of the family {name!r}",
            allowed=", ".join(sorted(_FAMILIES)),
            fix="install the package that adds it, or update stillhouse",
        )
    return _FAMILIES[name]
