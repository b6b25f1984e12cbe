"""Check that a word names one thing: `python -m tools.vocabulary` exits 1 where names of the source are ambiguous.

Checked are classes defined in more than one module, public functions whose names several modules define, and files of
the same name. Functions that are an interface (each command's `run`) and files that mirror each other on purpose (the
command `cli/check.py`, the families of `convert/` and `pipelines/`) do not count.
"""

import ast
import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "stillhouse"
MAX_SHARED_CLASSES, MAX_SHARED_FUNCTIONS, MAX_SHARED_FILES = 0, 8, 4
"""Largest numbers of class names, of public function names and of file names that several modules share."""
INTERFACE_FUNCTIONS = frozenset({"declare", "main", "open_graph", "run", "status"})
"""Functions that several modules must call the same, because their callers treat these modules alike."""
MIRRORED_DIRECTORIES = frozenset({"backends", "cli", "families", "kernels"})
"""Directories whose files may have the names of files elsewhere."""
_COPIES = "students"
_GENERATED = "_pb2.py"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where each name is defined, as `FILE:LINE` relative to the package.

    Args:
        classes: by name without leading underscores.
        functions: public functions of modules, without those of `INTERFACE_FUNCTIONS`.
        files: by stem, without packages, programs and the files of `MIRRORED_DIRECTORIES`.
    """

    classes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    functions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def read_vocabulary(source: Path) -> Vocabulary:
    """Read the names that the modules below a directory define."""
    vocabulary = Vocabulary()
    for path in source_files(source):
        name = path.relative_to(source).as_posix()
        if not (MIRRORED_DIRECTORIES & set(path.relative_to(source).parts) or path.stem.startswith("__")):
            vocabulary.files[path.stem].append(name)
        _read_definitions(ast.parse(path.read_text(encoding="utf-8")).body, name, vocabulary)
    return vocabulary


def source_files(source: Path) -> Iterator[Path]:
    """Yield the modules below a directory, without generated ones and the copies in the embedded students."""
    for path in sorted(source.rglob("*.py")):
        if _COPIES not in path.relative_to(source).parts and not path.name.endswith(_GENERATED):
            yield path


def shared(names: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the names that have several definitions."""
    return {name: places for name, places in sorted(names.items()) if len(places) > 1}


def find_excesses(vocabulary: Vocabulary) -> list[str]:
    """Return a message, with every name and where it is defined, for each limit that is exceeded."""
    checks = (
        ("class names", vocabulary.classes, MAX_SHARED_CLASSES),
        ("public function names", vocabulary.functions, MAX_SHARED_FUNCTIONS),
        ("file names", vocabulary.files, MAX_SHARED_FILES),
    )
    messages = []
    for label, names, limit in checks:
        ambiguous = shared(names)
        if len(ambiguous) > limit:
            lines = [f"  {name}: {', '.join(places)}" for name, places in ambiguous.items()]
            head = f"{len(ambiguous)} {label} are defined in several modules; allowed: {limit}; rename some of them:"
            messages.append("\n".join([head, *lines]))
    return messages


def main(argv: Sequence[str] | None = None) -> int:
    """Print what exceeds the limits. Return 1 if anything does, otherwise 0."""
    parser = ArgumentParser(prog="python -m tools.vocabulary", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--source", type=Path, default=SOURCE, metavar="DIR", help="package to check; default: %(default)s"
    )
    messages = find_excesses(read_vocabulary(parser.parse_args(argv).source))
    for message in messages:
        print(message, file=sys.stderr)
    return 1 if messages else 0


def _read_definitions(body: Iterable[ast.stmt], file: str, vocabulary: Vocabulary) -> None:
    for node in body:
        if isinstance(node, ast.ClassDef):
            vocabulary.classes[node.name.lstrip("_")].append(f"{file}:{node.lineno}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_counted(node.name):
            vocabulary.functions[node.name].append(f"{file}:{node.lineno}")


def _is_counted(function: str) -> bool:
    return not function.startswith("_") and function not in INTERFACE_FUNCTIONS


if __name__ == "__main__":
    sys.exit(main())
