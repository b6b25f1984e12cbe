"""`python -m stillhouse.shapes.train.ship`: trained weights into the package, if they are no worse."""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.convert.staging import staged
from stillhouse.core import ImageRequest
from stillhouse.pipelines.load import EMBEDDED, load
from stillhouse.pipelines.manifest import Component, Manifest, read_manifest, write_manifest
from stillhouse.shapes.score import evaluate_captions

STEPS, GUIDANCE = 35, 3.0
_STREAMS = 2
"""A guided picture has two rows."""


def main() -> None:
    """Make a pipeline of what training wrote, judge it against the one that ships, and put it in its place."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--trained", type=Path, default=Path("build/shapes"), help="a diffusers directory")
    parser.add_argument("--captions", type=int, default=300, help="held-out captions to judge both with")
    parser.add_argument("--anyway", action="store_true", help="do not judge")
    parser.add_argument("--student", type=Path, action="append", default=[], help="a pipeline that was distilled")
    arguments = parser.parse_args()
    for student in arguments.student:
        _ship_student(student)
    if arguments.student:
        return
    candidate, directory = arguments.trained.with_name("candidate"), EMBEDDED["shapes"]
    write_manifest(
        candidate, _shipped_manifest(import_model(arguments.trained, candidate, ImportOptions("shapes", force=True)))
    )
    if directory.exists() and not arguments.anyway:
        new, old = (_accuracy(place, arguments.captions) for place in (candidate, directory))
        print(f"all correct: {new:.1%}, the one that ships {old:.1%}")
        if new < old:
            sys.exit("the one that ships stays; --anyway puts the other in its place")
    with staged(directory, force=True) as stage:
        shutil.copytree(candidate, stage, dirs_exist_ok=True)


def _ship_student(source: Path) -> None:
    """A student takes its place under its own name, and is opened as is quickest for one row at a time."""
    manifest = read_manifest(source, verify=True)
    with staged(EMBEDDED[manifest.name], force=True) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True)
        components = {name: replace(one, streams=1) for name, one in manifest.components.items()}
        write_manifest(stage, replace(manifest, components=components))


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
    """OpenVINO for what runs at every step; the rest is over before OpenVINO would have compiled it."""
    if name != "unet":
        return component
    return replace(component, backend="openvino", precision="f32", streams=_STREAMS)


if __name__ == "__main__":
    main()
