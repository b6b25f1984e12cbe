"""Conversion of checkpoints to pipeline directories, by family (kind of model); needs the extra `train`.

A family, such as Stable Diffusion XL, is an object that implements `base.ConversionFamily`. The family of the same name
in `stillhouse.pipelines.families` runs the converted pipelines.
"""

from importlib.metadata import entry_points

from stillhouse.convert.families.base import ConversionFamily
from stillhouse.convert.families.sdxl import SDXL
from stillhouse.convert.families.stable_diffusion import STABLE_DIFFUSION
from stillhouse.errors import ImportFailed

ENTRY_POINTS = "stillhouse.conversions"
"""Group of the entry points by which installed packages add families. An entry point has the class name of a diffusers
pipeline, and refers to the family that converts its checkpoints."""
_FAMILIES: dict[str, ConversionFamily] = {}


def register_conversion(family: ConversionFamily) -> None:
    """Register a family in this process: `find_conversion` returns it for each class name in `family.pipelines`."""
    _FAMILIES.update(dict.fromkeys(family.pipelines, family))


def find_conversion(pipeline: str) -> ConversionFamily:
    """Return the family that converts checkpoints of a diffusers pipeline class (`_class_name` in model_index.json).

    Raises:
        ImportFailed: no family of this package or of an installed package converts this pipeline class.
    """
    if pipeline not in _FAMILIES:
        for point in entry_points(group=ENTRY_POINTS, name=pipeline):
            register_conversion(point.load())
    if pipeline not in _FAMILIES:
        known = [*_FAMILIES, *sorted(entry_points(group=ENTRY_POINTS).names)]
        raise ImportFailed(f"the source is a {pipeline}, which is not known", allowed=", ".join(dict.fromkeys(known)))
    return _FAMILIES[pipeline]


for _family in (STABLE_DIFFUSION, SDXL):
    register_conversion(_family)
