"""`python -m stillhouse.shapes.train.ship`: replace the package's model by a trained model that scores no worse."""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.convert.staging import staged
from stillhouse.core import ImageRequest
from stillhouse.pipelines.choose_backends import offer_backends
from stillhouse.pipelines.load import EMBEDDED, load
from stillhouse.pipelines.manifest import Component, Manifest, read_manifest, write_manifest
from stillhouse.pipelines.roles import DENOISER
from stillhouse.shapes.score import evaluate_captions

STEPS, GUIDANCE = 35, 3.0
_STREAMS = 2
"""Number of OpenVINO streams, one for each of the two denoiser rows of a picture with guidance."""


def main() -> None:
    """Import trained weights, and replace the package's model by them if they score no worse on captions."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--trained", type=Path, default=Path("build/shapes"), help="diffusers directory that training wrote"
    )
    parser.add_argument("--captions", type=int, default=300, help="number of held-out captions to compare on")
    parser.add_argument("--force", action="store_true", help="replace the shipped model without a comparison")
    parser.add_argument(
        "--student", type=Path, action="append", default=[], help="distilled pipeline to ship instead; may be repeated"
    )
    arguments = parser.parse_args()
    for student in arguments.student:
        _ship_student(student)
    if arguments.student:
        return
    candidate, directory = arguments.trained.with_name("candidate"), EMBEDDED["shapes"]
    imported = import_model(arguments.trained, candidate, ImportOptions("shapes", force=True))
    offer_backends(candidate, write_manifest(candidate, _shipped_manifest(imported)))
    if directory.exists() and not arguments.force:
        new, old = (_accuracy(source, arguments.captions) for source in (candidate, directory))
        print(f"all correct: {new:.1%}; the shipped model: {old:.1%}")
        if new < old:
            sys.exit("the shipped model is kept; --force replaces it")
    with staged(directory, force=True) as stage:
        shutil.copytree(candidate, stage, dirs_exist_ok=True)


def _ship_student(source: Path) -> None:
    """Copy the pipeline directory of a student (distilled model) into the package.

    A model of the same name in the package is replaced.

    The copy runs with one OpenVINO stream, because a student evaluates one denoiser row a picture.
    """
    manifest = read_manifest(source, verify=True)
    with staged(EMBEDDED[manifest.name], force=True) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True)
        components = {name: replace(component, streams=1) for name, component in manifest.components.items()}
        offer_backends(stage, write_manifest(stage, replace(manifest, components=components)))


def _accuracy(directory: Path, captions: int) -> float:
    return evaluate_captions(load(directory), ImageRequest("", steps=STEPS), captions).scores["all_correct"].value


def _shipped_manifest(manifest: Manifest) -> Manifest:
    return replace(
        manifest,
        components={name: _with_backend(name, component) for name, component in manifest.components.items()},
        defaults=replace(manifest.defaults, steps=STEPS, guidance=GUIDANCE, sampler="ddim"),
        source={"made by": "python -m stillhouse.shapes.train", "licence": "Apache-2.0"},
    )


def _with_backend(name: str, component: Component) -> Component:
    """Return a network's manifest entry, changed to run the network on OpenVINO if it is the denoiser.

    Entries of other networks stay unchanged, because OpenVINO takes longer to compile these networks than they run.

    Args:
        name: name of the network, such as "denoiser".
        component: the network's manifest entry.
    """
    if name != DENOISER:
        return component
    return replace(component, backend="openvino", precision="f32", streams=_STREAMS)


if __name__ == "__main__":
    main()
