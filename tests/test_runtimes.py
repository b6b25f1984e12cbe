"""Each runtime is imported by one file, however it is imported."""

import ast
from pathlib import Path

import pytest

import stillhouse

SOURCE = Path(stillhouse.__file__).parent
HOMES = {"onnxruntime": "backends/ort.py", "openvino": "backends/openvino.py"}
OPENERS = ("import_module", "require")


def imported(path: Path) -> set[str]:
    """Names of modules that a file imports, by statement or by a call with a constant."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OPENERS:
            asked = node.args[0]
            value = constants.get(asked.id) if isinstance(asked, ast.Name) else asked
            names |= {str(value.value)} if isinstance(value, ast.Constant) else set()
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("runtime", "home"), HOMES.items())
def test_a_runtime_is_imported_by_its_own_file_only(runtime: str, home: str) -> None:
    users = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if runtime in imported(path)]
    assert users == [home]
