"""The check of names counts what several modules define, and leaves out what mirrors on purpose."""

from pathlib import Path

import pytest

from tools.vocabulary import MAX_SHARED_FILES, MAX_SHARED_FUNCTIONS, find_excesses, main, read_vocabulary, shared


def write(source: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    return source


def test_the_source_keeps_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().err


def test_a_class_of_two_modules_is_named_with_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"a.py": "class Engine: ...\n", "b.py": "\nclass _Engine: ...\n"})
    assert main(["--source", str(tmp_path)]) == 1
    assert "Engine: a.py:1, b.py:2" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "code"), [(MAX_SHARED_FUNCTIONS, 0), (MAX_SHARED_FUNCTIONS + 1, 1)])
def test_public_functions_may_share_so_many_names(count: int, code: int, tmp_path: Path) -> None:
    text = "".join(f"def f{number}(): ...\n" for number in range(count))
    write(tmp_path, {"a.py": text, "b.py": text})
    assert main(["--source", str(tmp_path)]) == code


@pytest.mark.parametrize(("count", "code"), [(MAX_SHARED_FILES, 0), (MAX_SHARED_FILES + 1, 1)])
def test_files_may_share_so_many_names(count: int, code: int, tmp_path: Path) -> None:
    write(tmp_path, {f"{room}/f{number}.py": "" for number in range(count) for room in ("a", "b")})
    assert main(["--source", str(tmp_path)]) == code


def test_mirrors_interfaces_and_copies_do_not_count(tmp_path: Path) -> None:
    text = "class Plan: ...\ndef run(): ...\ndef _run(): ...\n"
    files = {"check.py": text, "cli/check.py": "def run(): ...\ndef _run(): ...\n", "students/plan.py": text}
    vocabulary = read_vocabulary(write(tmp_path, files))
    assert [shared(names) for names in (vocabulary.classes, vocabulary.functions, vocabulary.files)] == [{}, {}, {}]
    assert find_excesses(vocabulary) == []
