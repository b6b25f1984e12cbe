from pathlib import Path

import pytest

from stillhouse.errors import ImportFailed
from stillhouse.models.importers.staging import staged
from stillhouse.models.manifest import MANIFEST


def fill(target: Path, *, force: bool = False) -> None:
    with staged(target, force=force) as stage:
        assert stage.parent == target.parent and stage != target
        (stage / "folder").mkdir(mode=0o700)
        (stage / "folder" / "file").write_text("second")
        (stage / "folder" / "file").chmod(0o600)


@pytest.mark.parametrize("exists", [False, True])
def test_a_target_that_is_free(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "deep" / "target"
    if exists:
        target.mkdir(parents=True)
    fill(target)
    assert (target / "folder" / "file").read_text() == "second"
    assert (target / "folder").stat().st_mode & 0o777 == 0o755
    assert (target / "folder" / "file").stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(("name", "force"), [("notes.txt", True), (MANIFEST, False)])
def test_a_target_that_is_taken(tmp_path: Path, name: str, force: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_text("first")
    with pytest.raises(ImportFailed, match=r"is not empty and holds no pipeline|--force"):
        fill(target, force=force)
    assert (target / name).read_text() == "first"
    assert list(tmp_path.iterdir()) == [target] and len(list(target.iterdir())) == 1


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    with pytest.raises(ImportFailed, match="is a file"):
        fill(tmp_path / "target")


def test_force(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / MANIFEST).write_text("first")
    fill(target, force=True)
    assert not (target / MANIFEST).exists() and (target / "folder").is_dir()
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_all_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / MANIFEST).write_text("first")
    with pytest.raises(KeyboardInterrupt), staged(target, force=True) as stage:
        (stage / "file").touch()
        raise KeyboardInterrupt
    assert (target / MANIFEST).read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]
