"""Directories that appear whole or not at all, because they are written under another name and then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from stillhouse.errors import ImportFailed
from stillhouse.pipelines.manifest import MANIFEST


@contextmanager
def staged(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new directory. Rename it to `target` when the block ends, or remove it after an error in the block.

    Args:
        target: a new or empty directory; with `force` it may hold a pipeline, which is replaced.
        force: whether a pipeline in `target` may be replaced.

    Raises:
        ImportFailed: `target` cannot be written or replaced.
    """
    target = target.resolve()
    check_target(target, force)
    if target == Path.cwd():
        raise ImportFailed(
            f"{target} is the current directory",
            allowed="another directory",
            fix="name a directory inside the current one",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImportFailed(
            f"the directory {target.parent} cannot be made: {error.strerror}", fix="choose another place"
        ) from error
    stage = Path(mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    stage.chmod(0o755)
    try:
        yield stage
        # The files become readable for all users, because some libraries write files that only their owner can read.
        for path in stage.rglob("*"):
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
    """Check that a pipeline may be written to `target`.

    Raises:
        ImportFailed: `target` is a file, holds other files than a pipeline's, or holds a pipeline and `force` is False.
    """
    if target.is_file():
        raise ImportFailed(f"{target} is a file", allowed="a directory to write into", fix="choose another name")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        problem = f"{target} is not empty and holds no pipeline"
        raise ImportFailed(problem, allowed="a new or empty directory", fix="choose another name")
    if not force:
        raise ImportFailed(f"{target} holds a pipeline already", fix="choose another name, or replace it with --force")
