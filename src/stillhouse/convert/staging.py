"""A directory that appears whole or not at all: built under another name beside its place, and renamed at the end."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from stillhouse.errors import ImportFailed
from stillhouse.pipelines.manifest import MANIFEST


@contextmanager
def staged(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a new directory to write into; it becomes `target` if no error leaves the block, else it is removed.

    Raises:
        ImportFailed: `target` is a file, holds something that is no pipeline, or a pipeline without `force`.
    """
    target = target.resolve()
    check_target(target, force)
    if target == Path.cwd():
        raise ImportFailed(f"{target} is where you are", allowed="another directory", fix="name a directory in here")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImportFailed(f"{target.parent} cannot be made: {error.strerror}", allowed="a directory") from error
    stage = Path(mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    stage.chmod(0o755)
    try:
        yield stage
        for path in stage.rglob("*"):  # some libraries write their files for the owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            retired = stage.with_suffix(".old")
            target.rename(retired)
            try:
                stage.rename(target)
            except BaseException:
                retired.rename(target)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            stage.rename(target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def check_target(target: Path, force: bool) -> None:
    """Refuse what `staged` would refuse.

    Raises:
        ImportFailed: `target` is a file, holds something that is no pipeline, or a pipeline without `force`.
    """
    if target.is_file():
        raise ImportFailed(f"{target} is a file", allowed="a directory to write into", fix="choose another name")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        what = f"{target} is not empty and holds no pipeline"
        raise ImportFailed(what, allowed="a new or empty directory", fix="choose another name")
    if not force:
        raise ImportFailed(f"{target} holds a pipeline already", fix="choose another name, or replace it with --force")
