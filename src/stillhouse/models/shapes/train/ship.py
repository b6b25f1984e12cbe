"""`python -m stillhouse.models.shapes.train.ship`: trained weights into the package, as a pipeline directory."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from stillhouse.models.importers import ImportOptions, import_model
from stillhouse.models.load import EMBEDDED
from stillhouse.models.manifest import Component, Manifest, read_manifest, write_manifest

STEPS, GUIDANCE = 35, 3.0
_PARALLEL = 2
"""A guided picture has two rows."""


def main() -> None:
    """Import the diffusers directory of a training, or add a judgement to the pipeline that is there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--trained", type=Path, help="the diffusers directory that training wrote")
    parser.add_argument("--judged", type=Path, help="a judgement, as `stillhouse judge --json` writes it")
    arguments = parser.parse_args()
    directory = EMBEDDED["shapes"]
    if arguments.trained:
        write_manifest(
            directory, _ours(import_model(arguments.trained, directory, ImportOptions("shapes", force=True)))
        )
    if arguments.judged:
        manifest = read_manifest(directory, verify=True)
        evidence = {**manifest.evidence, "judge": json.loads(arguments.judged.read_text())}
        write_manifest(directory, replace(manifest, evidence=evidence))


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
    return replace(component, backend="openvino", precision="auto", streams=_PARALLEL)


if __name__ == "__main__":
    main()
