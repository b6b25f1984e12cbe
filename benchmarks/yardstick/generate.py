"""Generate groups of pictures with the tree on PYTHONPATH: `python -m benchmarks.yardstick.generate OUT GROUP...`.

Each group becomes OUT/GROUP.json and OUT/GROUP.npz when it is complete. A failure is recorded as an
error, and the other groups are generated. A line on the standard output, `MARK` and a name, reports each group.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.yardstick import names
from benchmarks.yardstick.cases import KINDS, Case, Group, groups

CHECKPOINTS = Path(__file__).parents[2] / "tests/golden/checkpoints"
ADAPTER = CHECKPOINTS / "lora.safetensors"
MARK = "yardstick generated "

Hashes = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def main(arguments: Sequence[str]) -> None:
    """Generate the groups that the arguments name."""
    out = Path(arguments[0])
    by_name = {group.name: group for group in groups()}
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        sources = _Sources(Path(scratch))
        for name in arguments[1:]:
            began = perf_counter()
            result, arrays = _generate_group(by_name[name], sources)
            result |= {"seconds": perf_counter() - began, "tree": _tree()}
            _write(out / name, result, arrays)
            print(f"{MARK}{name}", flush=True)
            gc.collect()


@dataclass(slots=True)
class _Sources:
    """Pipeline directories, each imported on first use."""

    scratch: Path
    directories: dict[tuple[str, bool], Path] = field(default_factory=dict)

    def find(self, group: Group) -> Path:
        """Return the directory of a group's pipeline."""
        key = (group.source, group.lora)
        if key not in self.directories:
            if group.source in KINDS:
                # Both trees need the same name: the target's becomes the pipeline's.
                target = self.scratch / ("lora" if group.lora else "plain") / group.source
                adapter = ADAPTER if group.lora else None
                self.directories[key] = names.imported(CHECKPOINTS / group.source, target, adapter)
            else:
                self.directories[key] = names.embedded(group.source)
        return self.directories[key]


def _generate_group(group: Group, sources: _Sources) -> tuple[dict[str, Any], Arrays]:
    """Return the hashes by case, or the error before the first case; and the final latents and pixels."""
    cases: dict[str, Hashes] = {}
    arrays: Arrays = {}
    try:
        with TemporaryDirectory(dir=sources.scratch) as scratch:
            pipeline = names.WAYS[group.way](sources.find(group), Path(scratch))
            for case in group.alone:
                _add(case.name, pipeline, [case], cases, arrays)
            if group.together:
                _add("batch", pipeline, group.together, cases, arrays)
    except Exception as error:  # recorded, so that the other groups are generated
        return {"error": f"{type(error).__name__}: {error}", "cases": cases}, arrays
    return {"cases": cases}, arrays


def _add(name: str, pipeline: Any, cases: Sequence[Case], results: dict[str, Hashes], arrays: Arrays) -> None:
    batch = len(cases) > 1
    labels = [f"{name}/{place}-{case.name}" if batch else name for place, case in enumerate(cases)]
    try:
        generated = generate(pipeline, cases)
    except Exception as error:
        results.update({label: {"error": f"{type(error).__name__}: {error}"} for label in labels})
        return
    for label, (hashes, latents, pixels) in zip(labels, generated, strict=True):
        if label in results:
            raise ValueError(f"two cases are called {label}")
        results[label] = hashes
        arrays |= {f"{label}:latents": latents, f"{label}:pixels": pixels}


def generate(pipeline: Any, cases: Sequence[Case]) -> list[tuple[Hashes, NDArray[Any], NDArray[Any]]]:
    """Generate a batch that one more picture joins after each evaluation; return hashes, clean latents and pixels.

    `begun` hashes what a picture begins with, `evaluations` the results of each evaluation: the latents and the clean
    picture that the network saw.
    """
    pictures: list[Any] = []
    begun: list[str] = []
    evaluations: list[list[str]] = []
    while len(pictures) < len(cases) or not all(map(_is_done, pictures)):
        if len(pictures) < len(cases):
            pictures.append(_start(pipeline, cases[len(pictures)]))
            begun.append(_begun(pictures[-1]))
            evaluations.append([])
        moving = [place for place, one in enumerate(pictures) if not _is_done(one)]
        pipeline.advance([pictures[place] for place in moving])
        for place in moving:
            evaluations[place].append(
                _hash(*(names.attribute(pictures[place], one) for one in ("latents", "denoised")))
            )
    return [_finished(pipeline, *three) for three in zip(pictures, begun, evaluations, strict=True)]


def _finished(
    pipeline: Any, picture: Any, begun: str, evaluations: list[str]
) -> tuple[Hashes, NDArray[Any], NDArray[Any]]:
    latents, pixels = names.attribute(picture, "latents"), pipeline.finish(picture).image
    hashes = {"begun": begun, "evaluations": evaluations, "latents": _hash(latents), "pixels": _hash(pixels)}
    return hashes, latents, pixels


def _start(pipeline: Any, case: Case) -> Any:
    request = names.made("ImageRequest", case.fields)
    if case.noise is None:
        return pipeline.start(request)
    noise = np.random.default_rng(case.noise).standard_normal((4, 16, 16), np.float32)
    return pipeline.start(request, noise=noise)


def _is_done(picture: Any) -> bool:
    return bool(names.attribute(picture, "is_done"))


def _begun(picture: Any) -> str:
    inputs = names.conditioning(picture)
    return _hash(names.attribute(picture, "latents"), *(inputs[name] for name in sorted(inputs)))


def _hash(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _tree() -> str:
    """Return the root of the tree that the package was imported from."""
    import stillhouse

    return str(Path(str(stillhouse.__file__)).parents[2])


def _write(path: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write both files, the JSON file last: a group with a JSON file is complete."""
    np.savez_compressed(path.with_name(f"{path.name}.npz"), **arrays)
    partial = path.with_name(f"{path.name}.json.part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path.with_name(f"{path.name}.json"))


if __name__ == "__main__":
    main(sys.argv[1:])
