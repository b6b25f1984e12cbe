"""Chooses how the networks of a pipeline run on this machine, where another machine chose, or none yet.

Without the check, a backend that is not installed on this machine would fail late, and a precision that is not accurate
here would go unnoticed. The check takes seconds, and its result is kept for this machine.
"""

import os
import warnings
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.fastest_component import (
    MeasuredComponent,
    describe_component,
    find_fastest,
    measure_component,
    read_recorded_call,
)
from stillhouse.pipelines.machine_choices import machine_choice
from stillhouse.pipelines.manifest import Component, Manifest

NO_MEASURE = "STILLHOUSE_NO_MEASURE"
"""Environment variable by whose value 1 pipelines that no machine has measured yet are opened as they are."""


class ForeignMachine(UserWarning):
    """The warning that a pipeline was accelerated on another machine.

    The message says which networks do not run as the manifest says, and why.
    """


def choose_components(directory: Path, manifest: Manifest, threads: int | None = None) -> dict[str, Component]:
    """Return how each network runs on this machine: as chosen before, or else by `revalidate`.

    Arguments and errors are those of `revalidate`.
    """
    with machine_choice(directory, threads) as kept:
        if (components := kept.read()) is None:
            components = revalidate(directory, manifest, threads)
            kept.write(components)
        return components


def needs_revalidation(manifest: Manifest, *, measure: bool = True) -> bool:
    """Return whether another machine chose how the pipeline's networks run, or none, so that this one must choose.

    With `measure` False, or NO_MEASURE in the environment, pipelines that no machine has measured stay as they are.
    """
    if manifest.tuned is None:
        return False
    if not manifest.tuned.fingerprint:
        return measure and os.environ.get(NO_MEASURE) != "1"
    return manifest.tuned.fingerprint != read_machine().fingerprint()


def revalidate(directory: Path, manifest: Manifest, threads: int | None = None) -> dict[str, Component]:
    """Return how each network runs on this machine, by role: the fastest way that is accurate here.

    For each network with recorded inputs, the manifest's component and its alternatives are run and compared. Other
    networks, and pipelines that were not accelerated on another machine, keep the manifest's components.

    Args:
        directory: directory of the pipeline.
        manifest: manifest of the pipeline.
        threads: most threads of each network; None: as in the manifest.

    Warns:
        ForeignMachine: says which components were replaced, and why.

    Raises:
        StillhouseError: no component for a role is accurate here.
    """
    tuned = manifest.tuned
    if tuned is None or not needs_revalidation(manifest):
        return dict(manifest.components)
    components, messages = dict(manifest.components), []
    for role, path in tuned.probes.items():
        candidates = [components[role], *tuned.alternatives.get(role, ())]
        recorded = read_recorded_call(directory / path)
        measured = [
            measure_component(
                directory,
                role,
                component,
                recorded,
                tuned.min_sqnr,
                threads,
                needs_equal_rows=tuned.needs_equal_rows,
            )
            for component in candidates
        ]
        refusals = [item.refusal for item in measured if item.refusal]
        fastest = find_fastest(measured)
        if fastest is None:
            raise StillhouseError(
                f"this pipeline has no way to run its {role} accurately on this machine: {'; '.join(refusals)}",
                fix="run `stillhouse accelerate` with the pipeline's source on this machine",
            )
        messages.append(_describe(role, components[role], fastest, refusals))
        components[role] = fastest.component
    if not tuned.fingerprint:
        return components
    warnings.warn(
        f"{manifest.name} was tuned on another machine; verified again: {'; '.join(messages)}. "
        "`stillhouse accelerate` on this machine settles it",
        ForeignMachine,
        stacklevel=4,
    )
    return components


def _describe(role: str, before: Component, fastest: MeasuredComponent, refusals: list[str]) -> str:
    reasons = f" ({'; '.join(refusals)})" if refusals else ""
    if fastest.component == before:
        return f"{role} runs as tuned{reasons}"
    return f"{role} is run by {describe_component(fastest.component)} instead of {describe_component(before)}{reasons}"
