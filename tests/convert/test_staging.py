"""A directory that appears whole or not at all, and never costs the one that was there."""

from pathlib import Path

import pytest

from stillhouse.convert.staging import staged
from stillhouse.errors import ImportFailed
from stillhouse.pipelines.manifest import MANIFEST


def pipeline_directory(path: Path, text: str) -> Path:
    path.mkdir()
    (path / MANIFEST).write_text(text)
    return path


def test_a_directory_appears_when_all_is_written(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "new", force=False) as stage:
        (stage / "file").write_text("whole")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_nothing_appears_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "new", force=False):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_old_pipeline_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = pipeline_directory(tmp_path / "model", "old")
    rename = Path.rename

    def refuse_new(path: Path, place: Path) -> Path:
        if path.suffix == ".part":
            raise OSError("no")
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="no"), staged(target, force=True) as stage:
        (stage / MANIFEST).write_text("new")
    assert (target / MANIFEST).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_place_where_one_stands_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportFailed, match="is the current directory"), staged(Path(), force=False):
        raise AssertionError("nothing may be begun")


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImportFailed, match="cannot be made"), staged(tmp_path / "file" / "new", force=False):
        raise AssertionError("nothing may be begun")
