"""Inputs on which candidates for a single ONNX file are checked besides the probes: of other shapes and branches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.accelerate.calibration.branches import find_branches
from stillhouse.accelerate.calibration.calibration_data import Feeds, Probe, read_probes, write_probes
from stillhouse.accelerate.calibration.other_shapes import other_shapes, resize_feeds

__all__ = ["OtherInputs", "write_other_inputs"]


@dataclass(frozen=True, slots=True)
class OtherInputs:
    """Inputs besides the probes that a network may get.

    Args:
        shapes: files of inputs of other shapes, one set in each.
        branches: files of inputs that take a branch of If which the probes do not take, one set in each.
        untaken: sentences about branches of If that no inputs take.
    """

    shapes: tuple[Path, ...] = ()
    branches: tuple[Path, ...] = ()
    untaken: tuple[str, ...] = ()


def write_other_inputs(
    graph: Path,
    probes: Path,
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    has_user_inputs: bool,
) -> OtherInputs:
    """Write inputs of other shapes and of other branches that an ONNX file or a user allows, beside the probes.

    A network may be right only for the shapes that it was made for, or in the branches of If that the probes take. The
    values of other shapes are those of the first probe, cut off or followed by those of the others. Inputs of other
    branches are those of the first probe with another value in one input, see `find_branches`.

    Args:
        graph: the ONNX file.
        probes: file of the probes.
        ranges: (minimum, maximum) shape by input name, where a user allows only these shapes.
        has_user_inputs: whether a user gave the probes. No other values are tried then, because the user may never
            call the network with them.
    """
    sets = [probe.feeds for probe in read_probes(probes)]
    shapes = other_shapes(graph, {name: array.shape for name, array in sets[0].items()}, ranges)
    resized = [Probe(_format_shapes(other), resize_feeds(sets, other)) for other in shapes]
    found = find_branches(graph, sets, vary=not has_user_inputs)
    branches = [Probe(_format_change(change), {**sets[0], **change}) for change in found.changes]
    return OtherInputs(
        _write(probes, "shapes", resized),
        _write(probes, "branch", branches),
        tuple(
            f"no probe takes one branch of the If that writes {branch.output} (its condition depends on "
            f"{', '.join(branch.inputs)}): candidates are not verified in this branch; give inputs that take both "
            "branches by --inputs"
            for branch in found.untaken
        ),
    )


def _write(probes: Path, name: str, sets: list[Probe]) -> tuple[Path, ...]:
    paths = []
    for number, probe in enumerate(sets):
        paths.append(probes.with_name(f"{name}-{number}.npz"))
        write_probes(paths[-1], [probe])
    return tuple(paths)


def _format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items() if shape)


def _format_change(change: Feeds) -> str:
    return ", ".join(f"{name} {array.flat[0]:g}" for name, array in change.items())
