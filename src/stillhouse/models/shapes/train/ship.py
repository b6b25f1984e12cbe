"""`python -m stillhouse.models.shapes.train.ship`: trained weights into the package, as a pipeline directory."""

import argparse
from dataclasses import replace
from pathlib import Path

from stillhouse.models.importers import ImportOptions, import_model
from stillhouse.models.load import EMBEDDED
from stillhouse.models.manifest import Component, Manifest, write_manifest

STEPS, GUIDANCE = 35, 3.0
_PARALLEL = 2
"""A guided picture has two rows."""


def main() -> None:
    """Import the diffusers directory that training wrote over the weights that ship."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--trained", type=Path, default=Path("build/shapes"))
    directory = EMBEDDED["shapes"]
    imported = import_model(parser.parse_args().trained, directory, ImportOptions("shapes", force=True))
    write_manifest(directory, _ours(imported))


def _ours(manifest: Manifest) -> Manifest:
    return replace(
        manifest,
        components={name: _fastest(name, component) for name, component in manifest.components.items()},
        defaults=replace(manifest.defaults, steps=STEPS, guidance=GUIDANCE, sampler="ddim"),
        source={"made by": "python -m stillhouse.models.shapes.train", "licence": "Apache-2.0"},
    )


def _fastest(name: str, component: Component) -> Component:
    """OpenVINO for what runs at every step; the rest is over before OpenVINO would have compiled it."""
    if name != "unet":
        return component
    return replace(component, backend="openvino", precision="f32", streams=_PARALLEL)


if __name__ == "__main__":
    main()
