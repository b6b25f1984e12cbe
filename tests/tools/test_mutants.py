"""Mutants are single faults that follow from the seed, and the tests of a project kill those that they check."""

import ast
import json
from pathlib import Path

import pytest

from tools.mutants.__main__ import ROOT, main
from tools.mutants.areas import AREAS, Area, draw_mutants, locate_mutants
from tools.mutants.sites import find_mutants, is_equivalent

MODULE = """def double(size):
    return size + size


def keep(size):
    return size
"""
TEST = """
from distillery.sizes import double

def test_double():
    assert double(3) == 6
"""
AREA = Area("sizes", "distillery", ("tests",), ())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose tests check one of two functions, and few plugins, so that pytest starts quickly."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "_hypothesis_pytestplugin")
    files = {"pyproject.toml": "[tool.pytest]\n", "src/distillery/sizes.py": MODULE, "tests/test_sizes.py": TEST}
    for name, text in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "project"


def mutate(source: str) -> set[str]:
    """Every mutant of a source text."""
    return {mutant.apply(source) for mutant in find_mutants("module.py", source)}


@pytest.mark.parametrize(
    ("source", "mutated"),
    [
        ("a < b", {"a <= b"}),
        ("a >= b > c", {"a > b > c", "a >= b >= c"}),
        ("a is  not b", {"a is b"}),
        ("a not in b", {"a in b"}),
        ("a + b", {"a - b"}),
        ("(a)  *  (b)  # a / b", {"(a)  /  (b)  # a / b"}),
        ("'é' == a // b", {"'é' != a // b", "'é' == a * b"}),
        ("a %= b", {"a *= b"}),
        ("a = 1", {"a = 2"}),
        ("a = 0.5", {"a = 1.5"}),
        ("a and b and c", {"a or b and c", "a and b or c"}),
        ("a = not b", {"a = b"}),
        ("if a:\n    b", {"if not (a):\n    b"}),
        ("while a and b: c", {"while not (a and b): c", "while a or b: c"}),
        ("a = b if c else d", {"a = b if not (c) else d"}),
        ("[a for a in b if a]", {"[a for a in b if not (a)]"}),
        ("a = min(b)", {"a = max(b)"}),
        ("def a():\n    return b, c", {"def a():\n    return None"}),
        ("a(b)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a.b, a.c = d", {"pass"}),
        ("a.b += c", {"pass", "a.b -= c"}),
    ],
)
def test_each_operator_changes_one_place(source: str, mutated: set[str]) -> None:
    assert mutate(source) == mutated


@pytest.mark.parametrize(
    "source",
    [
        '"""1 + 1"""',
        "a: Literal[1]",
        "a: b.c",
        "a: TypeAlias = Literal[1]",
        "def a(b: Literal[1]) -> Literal[2]: ...",
        "__all__ = [*a, *b][:1]",
        "if TYPE_CHECKING:\n    a = 1",
        "if typing.TYPE_CHECKING:\n    a = 1",
        "raise a(f'{b + 1}')",
        "assert a is not None and isinstance(b, c)",
        "'a' + b",
        "a = True",
        "def a():\n    return None",
        "a = b",
    ],
)
def test_texts_and_types_are_left_alone(source: str) -> None:
    assert mutate(source) == set()


def test_a_condition_is_not_negated_where_another_operator_does_the_same() -> None:
    assert mutate("if a == b: c") == {"if a != b: c"}
    assert mutate("if not a: b") == {"if a: b"}
    assert mutate("if a < b: c") == {"if a <= b: c", "if not (a < b): c"}


def test_a_mutant_names_its_place() -> None:
    source = "class A:\n    def b(self):\n        c = [0, 0]\n"
    first, second = find_mutants("a.py", source)
    assert (first.file, first.line, first.function, first.before, first.after) == ("a.py", 3, "A.b", "0", "1")
    assert (first.occurrence, second.occurrence) == (0, 1)
    assert second.apply(source) == source.replace("0]", "1]")
    moved = find_mutants("a.py", f"import d\n{source}")
    assert [mutant.key for mutant in moved] == [first.key, second.key]


@pytest.mark.parametrize(
    ("source", "mutated", "is_same"),
    [
        ("a = 1e18", "a = 1e18 + 1", True),
        ("a = 1", "\n\na =  1", True),
        ("a = 1", "a = (", True),
        ("a = 1", "a = 1.0", False),
        ("def a():\n    return 1", "def a():\n    return 2", False),
    ],
)
def test_mutants_of_the_same_code_are_equivalent(source: str, mutated: str, is_same: bool) -> None:
    assert is_equivalent(source, mutated) is is_same


def test_equivalent_mutants_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text("LARGEST = 1e18\nSMALLEST = 1\n", encoding="utf-8")
    drawn = draw_mutants(tmp_path, [Area("sizes", ".", (), ())], 2, "a")
    assert [mutant.before for _, mutant in drawn] == ["1"]


def test_mutants_follow_from_the_seed_and_compile() -> None:
    drawn = draw_mutants(ROOT / "src", AREAS, 40, "a")
    store = [area for area in AREAS if area.name == "store"]
    assert drawn[-10:] == draw_mutants(ROOT / "src", store, 10, "a") != draw_mutants(ROOT / "src", store, 10, "b")
    assert [area.name for area, _ in drawn] == [area.name for area in AREAS for _ in range(10)]
    assert len({mutant.key for _, mutant in drawn}) == 40
    for _, mutant in drawn:
        source = (ROOT / "src" / mutant.file).read_text(encoding="utf-8")
        ast.parse(mutant.apply(source))
        assert source[mutant.start :].startswith(mutant.before)
    located = locate_mutants(ROOT / "src", AREAS)
    assert [located[mutant.key] for _, mutant in drawn] == drawn


def test_the_paths_of_all_areas_exist() -> None:
    assert all((ROOT / path).exists() for area in AREAS for path in (*area.quick, *area.wider))


def test_tests_kill_the_mutants_that_they_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = project.parent / "before.json"
    assert main(["--count", "9", "--output", str(before)], project, [AREA]) == 0
    result = json.loads(before.read_text())
    test = "tests/test_sizes.py::test_double"
    assert sorted((entry["before"], entry["killed"], entry["failure"]) for entry in result["mutants"]) == [
        ("+", True, test),
        ("size", False, ""),
        ("size + size", True, test),
    ]
    shown = capsys.readouterr()
    assert "2 of 3 mutants killed" in shown.out
    assert f"killed   distillery/sizes.py:2 double: arithmetic: '+' -> '-'  {test}" in shown.out
    assert "quick tests, mutant 3 of 3, about 0 min left" in shown.err
    assert "wider tests, mutant 1 of 1" in shown.err
    assert (project / "src" / "distillery" / "sizes.py").read_text() == MODULE


def test_weaker_tests_of_another_tree_are_found(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, weaker = project.parent / "before.json", project.parent / "weaker"
    entry = {"number": 7, "file": "distillery/sizes.py", "line": 2, "function": "double", "operator": "arithmetic"}
    entry |= {
        "before": "+",
        "after": "-",
        "occurrence": 0,
        "killed": True,
        "failure": "tests/test_sizes.py::test_double",
    }
    others = [{**entry, "number": 8, "before": "/"}, {**entry, "number": 9, "before": "%"}]
    before.write_text(json.dumps({"seed": "a", "mutants": [entry, *others]}))
    (weaker / "tests").mkdir(parents=True)
    (weaker / "pyproject.toml").write_text("[tool.pytest]\n")
    (weaker / "tests" / "test_sizes.py").write_text("def test_nothing():\n    pass\n")
    assert main(["--compare", str(before), "--tests", str(weaker), "--only", "7", "8"], project, [AREA]) == 1
    shown = capsys.readouterr()
    assert "  7 survived distillery/sizes.py:2 double: arithmetic: '+' -> '-'" in shown.out
    assert "no longer killed: distillery/sizes.py:2 double: arithmetic: '+' -> '-'" in shown.err
    assert "not in the source: distillery/sizes.py:2 double: arithmetic: '/' -> '-'" in shown.err
    assert "%" not in shown.err


def test_a_test_that_fails_without_a_mutant_judges_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests" / "test_sizes.py").write_text("def test_wrong():\n    assert False\n")
    assert main(["--tests", str(project / "src")], project, [AREA]) == 2
    assert capsys.readouterr().err.endswith("src has none of the tests tests\n")
    assert main([], project, [AREA]) == 2
    assert "quick tests of sizes fail without a mutant: tests/test_sizes.py::test_wrong" in capsys.readouterr().err
