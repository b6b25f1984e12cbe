"""Opens pipelines by the name of an embedded model, or by directory."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stillhouse.errors import UnknownModel
from stillhouse.pipelines.manifest import MANIFEST
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.revalidate import choose_components, needs_revalidation

_SHAPES = Path(__file__).parents[1] / "shapes"
_STUDENTS = ("shapes-3", "shapes-1")
EMBEDDED = {"shapes": _SHAPES / "weights", **{name: _SHAPES / "students" / name for name in _STUDENTS}}
"""Directories of the models in this package, by name; `shapes-N` was distilled from `shapes` to N steps."""


def find_pipeline(model: str | Path) -> Path:
    """Return the directory of an embedded model, or `model` itself where it is a pipeline directory.

    Raises:
        UnknownModel: `model` is neither; the message offers the nearest name, or says how to import a diffusers
            directory.

    >>> find_pipeline("shapes").name
    'weights'
    """
    if str(model) in EMBEDDED:
        return EMBEDDED[str(model)]
    path = Path(model)
    if (path / MANIFEST).is_file():
        return path
    if (path / "model_index.json").is_file():
        raise UnknownModel(
            f"{path} is a diffusers directory, and no pipeline yet",
            fix=f"run `stillhouse import {path} -o {path}-pipeline`",
        )
    embedded_or_directory = f"{', '.join(EMBEDDED)}, or a pipeline directory"
    if path.is_dir():
        raise UnknownModel(f"{path} holds no pipeline: it has no {MANIFEST}", allowed=embedded_or_directory)
    near = get_close_matches(str(model), EMBEDDED, n=1)
    raise UnknownModel(
        f"there is no model {str(model)!r}",
        allowed=embedded_or_directory,
        fix=f"did you mean {near[0]!r}?" if near else "make one with `stillhouse import SOURCE -o DIR`",
    )


def load(
    model: str | Path,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    cache: Path | None = None,
    verify: bool = False,
    measure: bool = True,
) -> Pipeline:
    """Open a pipeline by the name of an embedded model or by directory; the other arguments are as in `Pipeline`.

    If backends and precisions were chosen on another machine, or on none, they are chosen here first, which takes
    seconds; see `revalidate`. The choice is kept for this machine. With `backend`, this step is skipped; with `measure`
    False, or STILLHOUSE_NO_MEASURE=1 in the environment, where no machine chose, so that networks run as the manifest
    says.

    >>> load("shapes").generate("a red circle", seed=7).image.shape  # doctest: +SKIP
    (64, 64, 3)
    """
    directory = find_pipeline(model)
    options: dict[str, Any] = {"backend": backend, "precision": precision, "threads": threads, "cache": cache}
    pipeline = Pipeline(directory, verify=verify, **options)
    if backend is None and needs_revalidation(pipeline.manifest, measure=measure):
        return Pipeline(directory, components=choose_components(directory, pipeline.manifest, threads), **options)
    return pipeline
