"""docs/python.md: public names, samplers, backends, and the entry points by which other packages extend Stillhouse."""

import ast
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import stillhouse
from stillhouse.backends.registry import backends
from tools.docs.docstrings import first_sentence, value_docstrings
from tools.docs.markdown import NOTICE, code, format_table

SOURCE = Path(stillhouse.__file__).parent
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def render_python_page() -> str:
    """Return the page."""
    sections = {
        "Public names": format_table(["`stillhouse.NAME`", "kind", "what it is"], map(_name_row, stillhouse.__all__)),
        "Samplers": format_table(["sampler", "what it is"], _sampler_rows()),
        "Backends": format_table(["backend", "installed by"], _backend_rows()),
        "Entry points": format_table(["group", "what it is for"], _entry_point_rows()),
    }
    return "\n".join([NOTICE, "# Python\n", *(f"## {heading}\n\n{table}" for heading, table in sections.items())])


def public_name_summary(name: str) -> str:
    """Return the first sentence of the docstring of a name in `stillhouse.__all__`."""
    value = getattr(stillhouse, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return first_sentence(value.__doc__)
    return first_sentence(value_docstrings(_home(name)).get(name))


def entry_point_groups() -> Mapping[str, str]:
    """Return the entry point groups that the source reads, with the docstring of the constant that names each."""
    return {group: meaning for path in sorted(SOURCE.rglob("*.py")) for group, meaning in _groups_in(path)}


def _name_row(name: str) -> list[str]:
    value = getattr(stillhouse, name)
    if inspect.isclass(value):
        kind = "error" if issubclass(value, BaseException) else "class"
    else:
        kind = "function" if inspect.isroutine(value) else "value"
    return [code(name), kind, public_name_summary(name)]


def _sampler_rows() -> Iterator[list[str]]:
    for name, sampler in stillhouse.SAMPLERS.items():
        yield [code(name), sampler.summary]


def _backend_rows() -> Iterator[list[str]]:
    for status in backends():
        yield [code(status.name), code(status.install)]


def _entry_point_rows() -> Iterator[list[str]]:
    scripts = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    for name, target in scripts.items():
        yield [code("console_scripts"), f"The command {code(name)} of this package: {code(target)}."]
    for group, meaning in entry_point_groups().items():
        yield [code(group), meaning]


def _home(name: str) -> Path:
    """Return the file of the module that `stillhouse/__init__.py` takes a public name from."""
    package = SOURCE / "__init__.py"
    for node in ast.walk(ast.parse(package.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            path = SOURCE.parent.joinpath(*str(node.module).split("."))
            return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return package


def _groups_in(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    if "entry_points(" not in text:
        return
    tree, docstrings = ast.parse(text), value_docstrings(path)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for name in sorted(_group_names(tree) & constants.keys()):
        yield str(constants[name]), docstrings.get(name, "")


def _group_names(tree: ast.Module) -> set[str]:
    """Return the names that are passed as `entry_points(group=NAME)`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    keywords = [keyword for call in calls if ast.unparse(call.func) == "entry_points" for keyword in call.keywords]
    return {keyword.value.id for keyword in keywords if keyword.arg == "group" and isinstance(keyword.value, ast.Name)}
